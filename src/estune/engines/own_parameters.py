"""A transformers model's own tensors, by the names in its files.

A tensor that transformers fuses with others is a view of the fused parameter, so that a member is
written without a copy. One that it splits into several parameters passes through a tensor of its
own size.
"""

from collections.abc import Mapping
from typing import Any

import torch

from estune.common.types import Variant
from estune.errors import EngineError, ModelError
from estune.theta.checkpoint import Checkpoint
from estune.theta.fused import Fragment
from estune.theta.parameters import Layout
from estune.theta.theta import Theta


class OwnParameters:
    """The parameters of `model`, which `layout` describes.

    Raises:
        ModelError: the model lacks one.
    """

    def __init__(self, model: Any, layout: Layout) -> None:
        in_model, fused = layout.in_model, layout.fused
        inside = dict(model.named_parameters(remove_duplicate=False))
        wanted = [*in_model.values(), *(each.inside for parts in fused.values() for each in parts)]
        if missing := [name for name in wanted if name not in inside]:
            raise ModelError(
                f"transformers' {type(model).__name__} has no parameter {missing[0]}, "
                "which the model's files hold"
            )
        self._whole: dict[str, torch.Tensor] = {}
        self._split: dict[str, SplitParameter] = {}
        self._fused = [name for name in in_model if name in fused]
        for name, inside_name in in_model.items():
            fragments = fused.get(name, ())
            if not fragments:
                self._whole[name] = inside[inside_name].data
            elif len(fragments) == 1 and fragments[0].part is None:
                self._whole[name] = fragments[0].place.of(inside[fragments[0].inside].data)
            else:
                self._split[name] = SplitParameter(name, fragments, inside)

    def read(self, name: str) -> torch.Tensor:
        """Return the parameter `name`: a view of the model's own, or a flat copy if it is split."""
        if name in self._split:
            return self._split[name].read()
        return self._whole[name]

    def load(self, theta: Theta, variant: Variant) -> None:
        """Write the variant's weights into the model."""
        for name, tensor in theta.perturbed(variant, self._destination):
            if name in self._split:
                self._split[name].write(tensor)

    def check_files(self, checkpoint: Checkpoint) -> None:
        """Compare what is fused or split with the files from which the model was loaded.

        Raises:
            EngineError: they differ.
        """
        for name, stored in checkpoint.read_all(self._fused):
            held = self.read(name)
            if not torch.equal(held, stored.to(held.device, held.dtype).view(held.shape)):
                raise EngineError(
                    f"{checkpoint.folder}: transformers does not keep the values of {name} where "
                    "its converters say, so this model cannot be tuned"
                )

    def _destination(self, name: str) -> torch.Tensor:
        if name in self._split:
            return self._split[name].empty()
        return self._whole[name]


class SplitParameter:
    """A tensor of the files that lies in several parameters of the model."""

    def __init__(
        self,
        name: str,
        fragments: tuple[Fragment, ...],
        inside: Mapping[str, torch.Tensor],
    ) -> None:
        self._parts = [each.part for each in fragments]
        self._places = [each.place.of(inside[each.inside].data) for each in fragments]
        self._size = sum(place.numel() for place in self._places)
        self._dtype, *others = {place.dtype for place in self._places}
        if others:
            raise ModelError(
                f"transformers keeps parts of {name} in {self._dtype} and {others[0]}; "
                "choose float32 as dtype"
            )

    def empty(self) -> torch.Tensor:
        """Return a new tensor of its size, flat."""
        return torch.empty(self._size, dtype=self._dtype, device=self._places[0].device)

    def read(self) -> torch.Tensor:
        """Return its values in the model, copied together."""
        whole = self.empty()
        for part, place in zip(self._parts, self._places, strict=True):
            (part.of(whole) if part else whole).copy_(place)
        return whole

    def write(self, whole: torch.Tensor) -> None:
        """Write its values into the model."""
        for part, place in zip(self._parts, self._places, strict=True):
            place.copy_(part.of(whole) if part else whole)
