"""Writing members straight to where vLLM keeps weights, as learned from one reload.

vLLM's reloading accepts tensors in any order: it takes every layer apart, buffers what arrives
until a layer is whole, fuses, copies, packs and reassembles. Once it is known which part of which
parameter a tensor fills, a member's weights can be written there directly. Several tensors may
share a parameter, as in fused layers. What a CPU build packs is packed again by vLLM's own
function. Only layers of known kinds are written to; for any other model `learn` returns None, and
the engine continues to use vLLM's reloading.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from estune.common.types import Variant
from estune.engines.vllm_copy_trace import Copy, CopyTrace, View
from estune.errors import EngineError
from estune.theta.theta import Theta

# Elements that are written before they are packed: packing while other threads write is slower
# overall (docs/log.md).
_PACKED_TOGETHER = 1 << 26
# Names of the input width in vLLM's layers.
_WIDTHS = ("input_size_per_partition", "input_size", "embedding_dim")


@dataclass
class _Target:
    """A parameter of vLLM's that our tensors fill.

    Attributes:
        module: the layer.
        name: the parameter's name in it.
        whole: its layout when it was loaded.
        packed: whether vLLM keeps only a packed form of it, and no tensor.
        sources: names of the tensors that fill it.
        filled: the number of elements that they fill; the rest is padding.
        buffer: where it is written: itself, or what is packed once it is complete.
        missing: the sources that have not been written yet.
    """

    module: Any
    name: str
    whole: View
    dtype: torch.dtype
    packed: bool
    sources: set[str] = field(default_factory=set)
    filled: int = 0
    buffer: torch.Tensor | None = None
    missing: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.whole.shape)

    def begin(self) -> torch.Tensor:
        """Return the tensor to write to."""
        if self.buffer is None:
            self.missing = set(self.sources)
            self.buffer = self._new_buffer() if self.packed else self._parameter.data
        return self.buffer

    def pack(self) -> None:
        """Let vLLM pack what was written; its empty parameter stays the same object."""
        kept = self._parameter
        written = torch.nn.Parameter(self.begin(), requires_grad=False)
        self.module._parameters[self.name] = written
        self.module.quant_method.process_weights_after_loading(self.module)
        self.module._parameters[self.name] = kept
        self.buffer = torch.empty(0)

    def is_direct(self) -> bool:
        """Whether the parameter has its layout of loading time, or is a packed form of that."""
        kept = self._parameter
        return self.packed or (View.of(kept) == self.whole and kept.dtype == self.dtype)

    @property
    def _parameter(self) -> torch.nn.Parameter:
        parameter: torch.nn.Parameter = self.module._parameters[self.name]
        return parameter

    def _new_buffer(self) -> torch.Tensor:
        make = torch.empty if self.filled == self.size else torch.zeros
        return make(self.whole.shape, dtype=self.dtype)


class DirectWriter:
    """Writes members straight into a vLLM model; made by `learn`."""

    def __init__(self, copies: list[Copy], model: torch.nn.Module, tuned: set[str]) -> None:
        self._targets: dict[tuple[int, str], _Target] = {}
        self._copies: dict[str, list[tuple[Copy, _Target]]] = {}
        for copy in copies:
            self._copies.setdefault(copy.name, []).append((copy, self._target(copy)))
        self._tuned = [one for one in self._targets.values() if one.sources & tuned]
        # Tensors that are not tuned, but packed together with tuned ones.
        self._frozen = {name for one in self._tuned if one.packed for name in one.sources - tuned}
        for one in self._tuned:
            one.sources &= tuned | self._frozen  # other tensors in it stay as loaded
        self._complete: list[_Target] = []  # written, and waiting to be packed
        self._heads, self._embeddings = _vocabulary_layers(model)

    @classmethod
    def learn(
        cls, trace: CopyTrace, model: torch.nn.Module, tuned: Iterable[str]
    ) -> "DirectWriter | None":
        """Return a writer, given the trace of a load of all weights.

        Return None if direct writing is impossible or not known to be right.
        """
        names = set(tuned)
        if not names <= {copy.name for copy in trace.copies}:
            return None
        if not all(copy.part and copy.parameter for copy in trace.copies):
            return None
        if not all(map(_is_known, model.modules())):
            return None
        writer = cls(trace.copies, model, names)
        return writer if all(target.is_direct() for target in writer._tuned) else None

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
            if name in self._frozen:
                self._fill(name, tensor)
        for name, tensor in theta.perturbed(
            variant, lambda name: self._destination(name, theta.tensors[name].shape)
        ):
            self._fill(name, tensor)
        self._pack()
        for embedding in self._embeddings:
            # Its packed form is outdated. Nothing should use it, but if so, this is correct.
            embedding.cpu_linear = torch.nn.functional.linear
        for head in self._heads:
            head.quant_method.process_weights_after_loading(head)
        self._check_complete()

    def _target(self, copy: Copy) -> _Target:
        assert copy.parameter and copy.whole
        module, name = copy.parameter
        key = id(module), name
        if key not in self._targets:
            packed = not module._parameters[name].numel()  # type: ignore[union-attr]
            self._targets[key] = _Target(module, name, copy.whole, copy.dtype, packed)
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
                if target.packed and not target.missing:
                    self._complete.append(target)
        if sum(target.size for target in self._complete) >= _PACKED_TOGETHER:
            self._pack()

    def _pack(self) -> None:
        for target in self._complete:
            target.pack()
        self._complete.clear()

    def _check_complete(self) -> None:
        unfinished = [
            f"{type(target.module).__name__}.{target.name}"
            for target in self._tuned
            if target.buffer is None or target.missing
        ]
        if unfinished:
            raise EngineError(
                f"{len(unfinished)} of vLLM's parameters were not written whole, "
                f"{unfinished[0]} among them"
            )


def responses(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the output of each part of the model for a fixed input.

    Weights that were packed cannot be compared in another way.
    """
    found = {}
    with torch.inference_mode():
        for name, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.numel():
                    rows = parameter.float().reshape(len(parameter) if parameter.dim() else 1, -1)
                    found[f"{name}.{own}"] = rows @ _ramp(rows.shape[1]).to(rows)
            if _multiplies(module):
                found[name] = _product(module)
    return found


def _multiplies(module: torch.nn.Module) -> bool:
    """Whether the layer multiplies its input by a matrix, which may be packed.

    The weights of convolutions, as in Mamba, are never packed.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    if not isinstance(module, (LinearBase, ParallelLMHead)):
        return False
    return all(parameter.dim() <= 2 for parameter in module.parameters(recurse=False))


def _product(module: Any) -> torch.Tensor:
    width = next(filter(None, (getattr(module, side, None) for side in _WIDTHS)))
    like = next(module.parameters())
    output: torch.Tensor = module.quant_method.apply(module, _ramp(width)[None].to(like), None)
    return output.float()


def _ramp(width: int) -> torch.Tensor:
    return torch.linspace(-1, 1, width) if width > 1 else torch.ones(1)


def _is_known(module: Any) -> bool:
    """Whether all that vLLM derives from this layer's weights is what the writer makes again."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if type(module) is Attention:
        return not any(True for _ in module.parameters())
    method = type(getattr(module, "quant_method", None))
    plain = method in (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    return plain and not hasattr(module, "process_weights_after_loading")


def _vocabulary_layers(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """Return the layers of which a CPU build keeps a packed form and the tensor.

    Returns:
        Those that make logits, and those that only look up rows. The latter need no packed form.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    packed = [layer for layer in layers if hasattr(layer, "cpu_linear")]
    heads = [layer for layer in packed if isinstance(layer, ParallelLMHead)] or packed
    return heads, [layer for layer in packed if layer not in heads]
