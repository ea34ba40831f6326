"""Attention on the CPU for grouped-query models, without copies of the shared keys and values.

If there is a mask, transformers copies shared keys and values for every query head. With one new
token per sequence, these copies take most of the time. Here the query heads that share a key are
treated as further queries of a single head, which gives the same result.
"""

from typing import Any

import torch

NAME = "estune_grouped"


def group_heads(model: Any) -> None:
    """Make `model` use `attend` if it is on the CPU and would use torch's fused attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    fused = model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    if fused and model.is_backend_compatible():
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, L, D)
    key: torch.Tensor,  # (B, H/G, S, D)
    value: torch.Tensor,  # (B, H/G, S, D)
    attention_mask: torch.Tensor | None,  # (B, 1, L, S)
    **settings: Any,
) -> tuple[torch.Tensor, None]:  # (B, L, H, D)
    """Do what transformers' `sdpa_attention_forward` does; cases not supported here go to it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, _ = query.shape
    groups = key.shape[1]
    if heads == groups or not _supported(length, attention_mask, settings):
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return usual
    per_group = heads // groups
    if attention_mask is not None and length > 1:
        attention_mask = attention_mask.repeat(1, 1, per_group, 1)  # (B, 1, G·L, S)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, groups, per_group * length, -1),  # (B, H/G, G·L, D)
        key,
        value,
        attn_mask=attention_mask,
        scale=settings.get("scaling"),
    )
    return out.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def _supported(length: int, mask: torch.Tensor | None, settings: dict[str, Any]) -> bool:
    """Whether grouping keeps the result: no dropout or position bias, one mask for all heads."""
    if settings.get("dropout"):
        return False
    if any(settings.get(name) is not None for name in ("position_bias", "cache")):
        return False
    return length == 1 if mask is None else mask.shape[1] == 1
