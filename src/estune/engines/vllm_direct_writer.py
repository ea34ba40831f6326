"""Where each of a checkpoint's tensors lands in vLLM's model, learned from one load, so that later ones are written straight there.

vLLM's reloading takes tensors from anywhere: it takes every layer apart, keeps what comes until a layer is whole, fuses, copies,
packs and puts together again. Once it is known which part of which parameter a tensor fills, a member's weights can be written
into that very part: fused layers are one tensor with several owners. What a CPU build packs is packed again by vLLM's own function.
Only layers whose treatment is known are written to; for any other model `learn` says no, and vLLM's reloading remains.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from estune.common.types import Variant
from estune.engines.vllm_copy_trace import Copies, Copy, View
from estune.errors import EngineError
from estune.theta.theta import Theta

_TOGETHER = (
    1 << 26
)  # elements that wait to be packed: packing and writing members at once get in each other's way (docs/log.md)
_WIDTHS = (
    "input_size_per_partition",
    "input_size",
    "embedding_dim",
)  # what layers call the length of their input


@dataclass
class _Parameter:
    """One of vLLM's parameters that tensors of ours fill. `now` is where it is written: itself, or what is packed once it is whole."""

    module: Any
    own: str
    whole: View
    dtype: torch.dtype
    packed: bool  # vLLM keeps it in a form of its own, and no tensor
    names: set[str] = field(default_factory=set)
    filled: int = 0  # elements that tensors of ours fill; the rest is padding
    now: torch.Tensor | None = None
    missing: set[str] = field(default_factory=set)

    def begin(self) -> torch.Tensor:
        """Where it is to be written."""
        if self.now is None:
            room = torch.empty if self.filled == math.prod(self.whole.shape) else torch.zeros
            self.now = (
                room(self.whole.shape, dtype=self.dtype)
                if self.packed
                else self.module._parameters[self.own].data
            )
            self.missing = set(self.names)
        return self.now


def responses(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What each part of the model makes of a fixed input: weights that were packed away cannot be read otherwise."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    found = {}
    with torch.inference_mode():
        for name, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.numel():
                    rows = parameter.float().reshape(
                        max(1, len(parameter) if parameter.dim() else 1), -1
                    )
                    found[f"{name}.{own}"] = rows @ _ramp(rows.shape[1]).to(rows)
            if isinstance(module, (LinearBase, ParallelLMHead)) and not _convolves(module):
                width = next(filter(None, (getattr(module, side, None) for side in _WIDTHS)))
                like = next(module.parameters())
                found[name] = module.quant_method.apply(
                    module, _ramp(width)[None].to(like), None
                ).float()
    return found


def _convolves(module: torch.nn.Module) -> bool:
    """Whether its weight serves a convolution, as Mamba's: it is not multiplied by and never packed away."""
    return any(parameter.dim() > 2 for parameter in module.parameters(recurse=False))


def _ramp(width: int) -> torch.Tensor:
    return torch.linspace(-1, 1, width) if width > 1 else torch.ones(1)


class DirectWriter:
    """Writes members straight into a vLLM model; made by `learn`."""

    def __init__(self, copies: list[Copy], model: torch.nn.Module, tuned: set[str]) -> None:
        self._parameters: dict[tuple[int, str], _Parameter] = {}
        self._copies: dict[str, list[tuple[Copy, _Parameter]]] = {}
        for copy in copies:
            self._copies.setdefault(copy.name, []).append((copy, self._parameter(copy)))
        self._touched = [one for one in self._parameters.values() if one.names & tuned]
        self._frozen = {name for one in self._touched if one.packed for name in one.names - tuned}
        for one in self._touched:
            one.names &= tuned | self._frozen  # what else it holds stays there
        self._waiting: list[_Parameter] = []  # whole, and to be packed
        self._heads, self._lookups = _over_the_vocabulary(model)

    @classmethod
    def learn(
        cls, copies: Copies, model: torch.nn.Module, tuned: Iterable[str]
    ) -> "DirectWriter | None":
        """From a load of all weights that `copies` saw; None where it cannot be done or is not known to be right."""
        names = set(tuned)
        known = all(map(_known, model.modules())) and all(
            copy.part and copy.parameter for copy in copies.all
        )
        if not known or not names <= {copy.name for copy in copies.all}:
            return None
        places = cls(copies.all, model, names)
        return places if all(map(_stays, places._touched)) else None

    def load(
        self, theta: Theta, variant: Variant, frozen: Iterable[tuple[str, torch.Tensor]]
    ) -> None:
        """Take the member's weights; of `frozen`, which ES does not tune, what shares a packed layer with what it does.

        Raises:
            EngineError: a layer did not get all of its weights.
            ModelError: a weight overflows its dtype.
        """
        for one in self._touched:
            one.now = None
        self._waiting.clear()
        for name, tensor in frozen:
            if name in self._frozen:
                self._fill(name, tensor)
        direct: set[str] = set()

        def destination(name: str) -> torch.Tensor:
            shape = theta.tensors[name].shape
            place = self._straight(name, shape)
            if place is None:
                copy, parameter = self._copies[name][0]
                return torch.empty(shape, dtype=copy.dtype, device=parameter.begin().device)
            direct.add(name)
            return place

        for name, tensor in theta.perturbed(variant, destination):
            self._fill(name, tensor, written=name in direct)
        self._pack()
        for lookup in self._lookups:
            lookup.cpu_linear = (
                torch.nn.functional.linear
            )  # right, if anybody ever asks; a packed one would be an old member's
        for head in self._heads:
            head.quant_method.process_weights_after_loading(head)
        self._check_whole()

    def _check_whole(self) -> None:
        if unfinished := [
            f"{type(one.module).__name__}.{one.own}"
            for one in self._touched
            if one.now is None or one.missing
        ]:
            raise EngineError(
                f"{len(unfinished)} of vLLM's parameters were not written whole, {unfinished[0]} among them"
            )

    def _parameter(self, copy: Copy) -> _Parameter:
        assert copy.parameter and copy.whole
        module, own = copy.parameter
        key = id(module), own
        if key not in self._parameters:
            packed = not module._parameters[own].numel()  # type: ignore[union-attr]
            self._parameters[key] = _Parameter(module, own, copy.whole, copy.dtype, packed)
        self._parameters[key].names.add(copy.name)
        self._parameters[key].filled += math.prod(copy.place.shape)
        return self._parameters[key]

    def _straight(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        """The place that `name` fills, where it goes to one as a whole, as it does unless it is split over ranks."""
        copy, parameter = self._copies[name][0]
        place = copy.place.within(parameter.begin())
        whole = len(self._copies[name]) == 1 and copy.part == View.of(
            torch.empty(shape, device="meta")
        )
        return place if whole and place.is_contiguous() else None

    def _fill(self, name: str, tensor: torch.Tensor, *, written: bool = False) -> None:
        """`name` has come; what is whole now may have to be packed."""
        for copy, parameter in self._copies[name]:
            into = parameter.begin()
            if not written:
                assert copy.part
                copy.place.within(into).copy_(copy.part.within(tensor))
        for parameter in {id(parameter): parameter for _, parameter in self._copies[name]}.values():
            parameter.missing.discard(name)
            if parameter.packed and not parameter.missing:
                self._waiting.append(parameter)
        if sum(math.prod(parameter.whole.shape) for parameter in self._waiting) >= _TOGETHER:
            self._pack()

    def _pack(self) -> None:
        for parameter in self._waiting:
            _pack(parameter)
        self._waiting.clear()


def _pack(parameter: _Parameter) -> None:
    """Let vLLM make its own form of what was written; its empty parameter stays the one that it was."""
    module, kept = parameter.module, parameter.module._parameters[parameter.own]
    module._parameters[parameter.own] = torch.nn.Parameter(parameter.now, requires_grad=False)  # type: ignore[arg-type]
    module.quant_method.process_weights_after_loading(module)
    module._parameters[parameter.own] = kept
    parameter.now = torch.empty(0)


def _known(module: Any) -> bool:
    """Whether nothing is made of this layer's weights but what `_pack` and the heads make again."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if type(module) is Attention:
        return not any(True for _ in module.parameters())
    plain = type(getattr(module, "quant_method", None)) in (
        type(None),
        UnquantizedLinearMethod,
        UnquantizedEmbeddingMethod,
    )
    return plain and not hasattr(module, "process_weights_after_loading")


def _stays(parameter: _Parameter) -> bool:
    """Whether what vLLM holds is laid out as what was loaded, or is packed from it."""
    kept = parameter.module._parameters[parameter.own]
    return parameter.packed or (View.of(kept) == parameter.whole and kept.dtype == parameter.dtype)


def _over_the_vocabulary(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """Layers of which a CPU build keeps a packed form beside the tensor: those that make logits, and those that only look rows up.

    An input embedding is packed too, though nobody multiplies by it where there is an output layer; it is spared that.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    over = [
        one
        for one in model.modules()
        if isinstance(one, VocabParallelEmbedding) and hasattr(one, "cpu_linear")
    ]
    heads = [one for one in over if isinstance(one, ParallelLMHead)] or over
    return heads, [one for one in over if one not in heads]
