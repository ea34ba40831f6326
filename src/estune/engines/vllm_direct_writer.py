"""Writing members straight to where vLLM keeps weights, as learned from one reload.

vLLM's reloading accepts tensors in any order: it takes every layer apart, buffers what arrives
until a layer is whole, fuses, copies, packs and reassembles. Once it is known which part of which
parameter a tensor fills, a member's weights can be written there directly. Several tensors may
share a parameter, as in fused layers and experts. What a CPU build packs is packed again by vLLM's
own functions. Only layers of known kinds are written to; the others continue to be reloaded.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from estune.common.types import Variant
from estune.engines.vllm_copy_trace import Copy, CopyTrace, View
from estune.engines.vllm_layers import packs_experts, unknown_parts, vocabulary_layers
from estune.engines.vllm_weight_map import WeightMap
from estune.errors import EngineError
from estune.theta.theta import Theta

# Pack once this many elements have been written. Packing each parameter by itself, while other
# threads still write, is slower overall (docs/log.md).
_PACKED_TOGETHER = 1 << 26
# The parameters of experts that vLLM packs.
_EXPERTS = ("w13_weight", "w2_weight")


@dataclass
class _Target:
    """A parameter of vLLM's that our tensors fill.

    Attributes:
        module: the layer.
        name: the parameter's name in it.
        whole: its layout when it was loaded.
        packed: whether vLLM keeps only an opaque packed form of it, and no tensor.
        packed_in_place: whether vLLM keeps it as a packed tensor of the same shape, as experts.
        spare: free buffers for experts, shared by all targets.
        sources: names of the tensors that fill it.
        filled: the number of elements that they fill; the rest is padding.
        buffer: the tensor to write to: the parameter, or one that is packed when it is complete;
            None until the first write. Empty once it is packed.
        missing: the sources that have not been written yet.
    """

    module: Any
    name: str
    whole: View
    dtype: torch.dtype
    packed: bool
    packed_in_place: bool
    spare: list[torch.Tensor]
    sources: set[str] = field(default_factory=set)
    filled: int = 0
    buffer: torch.Tensor | None = None
    missing: set[str] = field(default_factory=set)

    @property
    def is_buffered(self) -> bool:
        """Whether it is written to a buffer first, and packed once that is complete."""
        return self.packed or self.packed_in_place

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.whole.shape)

    def begin(self) -> torch.Tensor:
        """Return the tensor to write to."""
        if self.buffer is None:
            self.missing = set(self.sources)
            self.buffer = self._new_buffer() if self.is_buffered else self._parameter.data
        return self.buffer

    def pack(self) -> None:
        """Let vLLM pack what was written; its parameter stays the same object."""
        kept = self._parameter
        if self.packed_in_place:
            experts = self.module.quant_method.moe_kernel.fused_experts
            written = self.begin()
            torch.ops._C.prepack_moe_weight(written, kept.data, experts.isa)
            self.spare.append(written)
            self.buffer = torch.empty(0)
            return
        written = torch.nn.Parameter(self.begin(), requires_grad=False)
        self.module._parameters[self.name] = written
        self.module.quant_method.process_weights_after_loading(self.module)
        self.module._parameters[self.name] = kept
        self.buffer = torch.empty(0)

    def is_direct(self) -> bool:
        """Whether the parameter still has its layout of loading, or is packed from that."""
        kept = self._parameter
        if self.packed_in_place and not _has_packer(self.module):
            return False
        return self.packed or (View.of(kept) == self.whole and kept.dtype == self.dtype)

    @property
    def _parameter(self) -> torch.nn.Parameter:
        parameter: torch.nn.Parameter = self.module._parameters[self.name]
        return parameter

    def _new_buffer(self) -> torch.Tensor:
        for position, spare in enumerate(self.spare if self.filled == self.size else ()):
            if spare.shape == self.whole.shape and spare.dtype == self.dtype:
                return self.spare.pop(position)
        make = torch.empty if self.filled == self.size else torch.zeros
        return make(self.whole.shape, dtype=self.dtype)


class DirectWriter:
    """Writes members straight into a vLLM model; made by `learn`.

    Attributes:
        names: the tuned tensors that it writes.
        reloaded: the tensors that must be reloaded instead, including ones that are not tuned.
        modules: the layers that must be reloaded.
        frozen_in_packed: the tensors that are not tuned but packed together with tuned ones.
    """

    def __init__(
        self,
        copies: list[Copy],
        model: torch.nn.Module,
        tuned: set[str],
        modules: set[torch.nn.Module],
    ) -> None:
        weights = WeightMap(copies)
        self.modules = modules
        self.reloaded = weights.names_in(modules)
        self.names = tuned - self.reloaded
        self._spare: list[torch.Tensor] = []  # buffers of experts, to be used again
        self._targets: dict[tuple[int, str], _Target] = {}
        self._copies: dict[str, list[tuple[Copy, _Target]]] = {}
        for copy in copies:
            if copy.parameter and copy.parameter[0] not in modules:
                self._copies.setdefault(copy.name, []).append((copy, self._target(copy)))
        self._tuned = [one for one in self._targets.values() if one.sources & tuned]
        together = [one for one in self._tuned if one.is_buffered]
        self.frozen_in_packed = {name for one in together for name in one.sources - tuned}
        for one in self._tuned:
            one.sources &= tuned | self.frozen_in_packed  # other tensors in it stay as loaded
        self._complete: list[_Target] = []  # written, and waiting to be packed
        self._heads, self._embeddings = vocabulary_layers(model)

    @classmethod
    def learn(
        cls,
        trace: CopyTrace,
        model: torch.nn.Module,
        tuned: Iterable[str],
        avoided: Iterable[torch.nn.Module] = (),
    ) -> "DirectWriter | None":
        """Return a writer, given the trace of a load of all weights.

        Return None if it is not known where tensors go, or no tuned one can be written directly.

        Args:
            avoided: layers that were not right when they were written directly.
        """
        weights = WeightMap(trace.copies)
        names = set(tuned) & {copy.name for copy in trace.copies}  # the rest is other ranks'
        if not weights.placed or not names:
            return None
        filled = weights.modules_of(names)
        unfit = set(avoided) | unknown_parts(model)
        unfit |= {copy.parameter[0] for copy in trace.copies if copy.parameter and not copy.part}
        writer = cls(trace.copies, model, names, set())  # of all layers, to see which are direct
        unfit |= {target.module for target in writer._tuned if not target.is_direct()}
        modules = weights.closed(unfit & filled)
        writer = cls(trace.copies, model, names, modules)
        return writer if writer.names else None

    def load(
        self, theta: Theta, variant: Variant, frozen: Collection[tuple[str, torch.Tensor]]
    ) -> None:
        """Take the variant's weights.

        Args:
            frozen: the weights that ES does not tune. Those that share a packed layer with tuned
                ones are written, too.

        Raises:
            EngineError: a layer did not get all of its weights.
            ModelError: a weight overflows its dtype.
        """
        for target in self._tuned:
            target.buffer = None
        self._complete.clear()
        for name, tensor in frozen:
            if name in self.frozen_in_packed:
                self._fill(name, tensor)
        for name, tensor in theta.perturbed(
            variant, lambda name: self._destination(name, theta.tensors[name].shape)
        ):
            self._fill(name, tensor)
        self._finish()
        self._check_complete(self._tuned)

    def write(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the tensors of some layers; those that are packed together must all be given."""
        for target in self._tuned:
            target.buffer = None
        for name, tensor in weights:
            self._fill(name, tensor)
        self._finish()
        self._check_complete([target for target in self._tuned if target.buffer is not None])

    def _finish(self) -> None:
        """Pack what is left, and what vLLM packs separately."""
        self._pack()
        for embedding in self._embeddings:
            # Its packed form is outdated. Nothing should use it; if something does, the plain
            # product gives the right result.
            embedding.cpu_linear = torch.nn.functional.linear
        for head in self._heads:
            head.quant_method.process_weights_after_loading(head)

    def _target(self, copy: Copy) -> _Target:
        assert copy.parameter and copy.whole
        module, name = copy.parameter
        key = id(module), name
        if key not in self._targets:
            packed = not module._parameters[name].numel()  # type: ignore[union-attr]
            in_place = name in _EXPERTS and packs_experts(module)
            self._targets[key] = _Target(
                module, name, copy.whole, copy.dtype, packed, in_place, self._spare
            )
        target = self._targets[key]
        target.sources.add(copy.name)
        target.filled += math.prod(copy.target.shape)
        return target

    def _destination(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return the tensor to which `name` is written: its final place, or a new one."""
        place = self._final(name, shape)
        if place is not None:
            return place
        copy, target = self._copies[name][0]
        return torch.empty(shape, dtype=copy.dtype, device=target.begin().device)

    def _final(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        """Return the place of `name` if it goes to one place as a whole, not split over ranks."""
        copy, target = self._copies[name][0]
        place = copy.target.within(target.begin())
        whole = copy.part == View.of(torch.empty(shape, device="meta"))
        return place if len(self._copies[name]) == 1 and whole and place.is_contiguous() else None

    def _fill(self, name: str, tensor: torch.Tensor) -> None:
        """Copy `tensor` to its places unless it was written there; pack complete targets."""
        for copy, target in self._copies[name]:
            assert copy.part
            place = copy.target.within(target.begin())
            if place.data_ptr() != tensor.data_ptr():
                place.copy_(copy.part.within(tensor))
            if name in target.missing:
                target.missing.remove(name)
                if target.is_buffered and not target.missing:
                    self._complete.append(target)
        if sum(target.size for target in self._complete) >= _PACKED_TOGETHER:
            self._pack()

    def _pack(self) -> None:
        for target in self._complete:
            target.pack()
        self._complete.clear()

    def _check_complete(self, targets: list[_Target]) -> None:
        unfinished = [
            f"{type(target.module).__name__}.{target.name}"
            for target in targets
            if target.buffer is None or target.missing
        ]
        if unfinished:
            raise EngineError(
                f"{len(unfinished)} of vLLM's parameters were not written whole, "
                f"{unfinished[0]} among them"
            )


def _has_packer(module: Any) -> bool:
    """Whether vLLM packs the module's experts by a function that writes into their memory."""
    experts = module.quant_method.moe_kernel.fused_experts
    packer = getattr(torch.ops._C, "prepack_moe_weight", None)
    return packer is not None and hasattr(experts, "isa") and not experts._use_zentorch
