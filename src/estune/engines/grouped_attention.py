"""Attention for the CPU that reads shared keys and values where they are.

Under a mask transformers repeats the keys and values of grouped-query models for every query head. With one new token a row,
torch then copies and packs for longer than it does anything else. Here the heads that share a key are queries of one head:
the same numbers, without the copies.
"""

from typing import Any

import torch

NAME = "estune_grouped"


def group_heads(model: Any) -> None:
    """Let `model` attend so, if it is on the CPU, would take torch's `scaled_dot_product_attention`, and may take another."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    usual = model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    if usual and model.is_backend_compatible():
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
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    (batch, heads, length, _), shared = query.shape, key.shape[1]
    usual = not any(
        settings.get(name) is not None for name in ("position_bias", "cache")
    ) and not settings.get("dropout")
    masked = length == 1 if attention_mask is None else attention_mask.shape[1] == 1
    if heads == shared or not usual or not masked:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)  # type: ignore[no-any-return]
    grouped = query.reshape(batch, shared, heads // shared * length, -1)
    mask = (
        attention_mask.repeat(1, 1, heads // shared, 1)
        if attention_mask is not None and length > 1
        else attention_mask
    )
    out = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask, scale=settings.get("scaling")
    )
    return out.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None
