"""The device and the dtype in which an engine computes: what `device` and `dtype: auto` mean on this machine."""

import torch

from estune.config import ESConfig


def default_device() -> str:
    """The accelerator that torch finds, else the CPU."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator.type if accelerator else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """bf16 where the device computes in it, else fp32."""
    if device.startswith("cuda"):
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    if device == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16


def engine_dtype(config: ESConfig) -> torch.dtype:
    """The dtype that `config` asks for."""
    if config.dtype == "auto":
        return default_dtype(engine_device(config))
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[
        config.dtype
    ]


def engine_device(config: ESConfig) -> str:
    """The device that `config` asks for."""
    return default_device() if config.device == "auto" else config.device
