"""Find the device and the dtype with which an engine computes, if a setting is `auto`.

`build` does this once and passes both to the engine.
"""

import torch

from estune.config import ESConfig


def engine_device(config: ESConfig) -> str:
    """Return the engine's device, by torch's name; for `auto`, the one that torch finds."""
    return default_device() if config.device == "auto" else config.device


def engine_dtype(config: ESConfig) -> torch.dtype:
    """Return the engine's dtype; for `auto`, the one that suits the device."""
    if config.dtype == "auto":
        return default_dtype(engine_device(config))
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def default_device() -> str:
    """Return the kind of accelerator that torch finds, else "cpu"."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """Return bf16 if the device computes in it natively, else fp32."""
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = True
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without "torch.", as other libraries' settings spell it."""
    return str(dtype).removeprefix("torch.")
