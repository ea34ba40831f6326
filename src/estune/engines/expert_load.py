"""Count how many tokens each expert of a mixture of experts served.

A member whose router sends every token to the same few experts has lost most of its model, and
rewards show that late. Only positions count that a new token is computed from: not padding, and not
a prompt before its end.
"""

from functools import partial
from typing import Any

import torch


class ExpertCounter:
    """Counts during forward passes of `model`; without experts it does nothing.

    Experts are found by how transformers calls them: a module named `experts` that gets the indices
    of each token's experts as integers (T, k). Llama 4 and JetMoe do it differently and aren't
    counted.

    Args:
        pad: the token that fills rows which are shorter, or have ended.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self._pad = pad
        self._shape = (0, 0)
        self._live = torch.ones(0, dtype=torch.bool)
        experts = [
            module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] == "experts" and _count(module)
        ]
        self._counts: list[torch.Tensor | None] = [None] * len(experts)
        if experts:
            model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        for layer, module in enumerate(experts):
            module.register_forward_pre_hook(partial(self._before, layer), with_kwargs=True)

    def start(self) -> None:
        """Count from zero."""
        self._counts = [None] * len(self._counts)

    def counts(self) -> list[list[int]]:
        """Return, for each layer that was counted, the number of tokens per expert."""
        return [counts[:-1].tolist() for counts in self._counts if counts is not None]

    def _before_model(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which rows of the batch still generate."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            self._shape = (ids.shape[0], ids.shape[1])
            self._live = ids[:, -1] != self._pad  # (B,)
        elif (embedded := kwargs.get("inputs_embeds")) is not None:
            self._shape = (embedded.shape[0], embedded.shape[1])
            self._live = torch.ones(len(embedded), dtype=torch.bool, device=embedded.device)

    def _before(
        self, layer: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        rows, length = self._shape
        for chosen in (*args, *kwargs.values()):
            if _is_choice(chosen) and len(chosen) == rows * length:
                last = chosen.view(rows, length, -1)[:, -1].long()  # (B, k)
                self._add(layer, _count(module), last)
                return

    @torch.inference_mode()  # also in passes with gradients, when a comparison trains the model
    def _add(self, layer: int, experts: int, chosen: torch.Tensor) -> None:
        """Count `chosen` (B, k); what is no expert, such as LongCat's identity, counts last."""
        counts = self._counts[layer]
        if counts is None:
            counts = torch.zeros(experts + 1, dtype=torch.long, device=chosen.device)
            self._counts[layer] = counts
        live = self._live.to(chosen.device)[:, None].expand_as(chosen).long()
        counts.scatter_add_(0, chosen.clamp(max=experts).flatten(), live.flatten())


def _is_choice(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == 2
        and value.dtype in (torch.int32, torch.int64)
    )


def _count(module: torch.nn.Module) -> int:
    """Return the number of experts, which is the first size of their tensors; 0 if it has none."""
    return next((len(one) for one in module.parameters(recurse=False) if one.dim() > 1), 0)
