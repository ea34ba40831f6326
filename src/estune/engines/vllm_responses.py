"""What each part of a vLLM model makes of a fixed input, which shows the weights that it holds."""

from typing import Any

import torch

from estune.engines.vllm_layers import products

# Names of the input width in vLLM's layers.
_WIDTHS = ("input_size_per_partition", "input_size", "embedding_dim")


def responses(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the output of each part of the model for a fixed input.

    Packed weights that stay a tensor, as those of experts, are compared in the packed form, which
    is what the kernel reads. Others can only be compared by what their layer computes.
    """
    found = {}
    with torch.inference_mode():
        for name, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.numel():
                    found[f"{name}.{own}"] = _sums(parameter)
        for name, module in products(model):
            found[name] = _product(module)
    return found


def _sums(parameter: torch.Tensor) -> torch.Tensor:
    """Return a weighted sum of each row, of one row after the other if rows are large."""
    rows = parameter.reshape(len(parameter) if parameter.dim() else 1, -1)
    if parameter.dim() > 2:
        ramp = _ramp(rows.shape[1]).to(rows.device)
        return torch.stack([row.float() @ ramp for row in rows])
    rows = rows.float()
    return rows @ _ramp(rows.shape[1]).to(rows)


def _product(module: Any) -> torch.Tensor:
    width = next(filter(None, (getattr(module, side, None) for side in _WIDTHS)))
    like = next(module.parameters())
    output: torch.Tensor = module.quant_method.apply(module, _ramp(width)[None].to(like), None)
    return output.float()


def _ramp(width: int) -> torch.Tensor:
    return torch.linspace(-1, 1, width) if width > 1 else torch.ones(1)
