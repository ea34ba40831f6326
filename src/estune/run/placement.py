"""Decide where θ lives: on the engine's GPU if both fit there, else in host memory.

The decision is made before anything is loaded. `estune plan` estimates the engine's size for it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from estune.common.resources import amount
from estune.config import ESConfig
from estune.errors import ConfigError, ResourceError

RESERVE = 2 << 30  # bytes of a GPU left free for temporary buffers and fragmentation
_VLLM_FRACTION = 0.92  # vLLM's default gpu_memory_utilization


@dataclass(frozen=True)
class Placement:
    """The device that holds θ ("cpu": host memory), and a one-line explanation for the log."""

    device: str
    why: str = ""


def place_theta(config: ESConfig, device: str, theta: int, engine: Callable[[], int]) -> Placement:
    """Return where θ goes.

    Args:
        config: the settings; `center_device` says where the user wants θ.
        device: the engine's device.
        theta: bytes of θ.
        engine: returns the bytes that the transformers engine will take on the GPU.

    Raises:
        ConfigError: center_device is cuda, but θ cannot be on a GPU.
        ResourceError: center_device is cuda, but θ does not fit.
    """
    wanted = config.center_device
    if wanted == "cpu":
        return Placement("cpu", "θ is in host memory, as center_device says")
    if obstacle := _obstacle(config, device):
        if wanted == "cuda":
            raise ConfigError(
                f"center_device: θ cannot be on a GPU, because {obstacle}; choose auto or cpu"
            )
        why = f"θ is in host memory, because {obstacle}" if torch.cuda.is_available() else ""
        return Placement("cpu", why)
    free, total = torch.cuda.mem_get_info(device)
    engine_bytes = vllm_bytes(config, total) if config.engine == "vllm" else engine()
    return choose(wanted, theta, engine_bytes, free, device)


def choose(wanted: str, theta: int, engine: int, free: int, device: str) -> Placement:
    """Return where θ goes.

    Args:
        wanted: the setting center_device.
        theta: bytes of θ.
        engine: bytes that the engine will take on `device`.
        free: bytes that are free on `device`.

    Raises:
        ResourceError: `wanted` is "cuda", and θ does not fit.
    """
    needs = (
        f"{amount(theta)} for θ, {amount(engine)} for the engine and {amount(RESERVE)} in reserve"
    )
    if theta + engine + RESERVE <= free:
        return Placement(device, f"θ is on {device}: {needs} fit into the free {amount(free)}")
    short = f"{device} has {amount(free)} free, less than {needs}"
    if wanted == "cuda":
        raise ResourceError(
            f"center_device: θ does not fit: {short}; "
            "choose auto or cpu, or let the engine take less"
        )
    return Placement("cpu", f"θ is in host memory, because {short}")


def vllm_bytes(config: ESConfig, total: int) -> int:
    """Return the bytes that vLLM's weights and cache take on a GPU of `total` bytes."""
    setting = config.vllm_gpu_memory_utilization
    fraction = (config.engine_kwargs or {}).get("gpu_memory_utilization", setting)
    return int(total * (_VLLM_FRACTION if fraction is None else fraction))


def _obstacle(config: ESConfig, device: str) -> str | None:
    """Return why θ cannot be on a GPU, whatever its size; None if it can."""
    if config.workers != "local":
        return f"workers: {config.workers} runs engines in processes that read θ from host memory"
    if config.vllm_tensor_parallel_size > 1:
        return "vllm_tensor_parallel_size starts processes that read θ from host memory"
    if config.engine == "vllm" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") != "0":
        return "VLLM_ENABLE_V1_MULTIPROCESSING puts vLLM into another process"
    if config.engine == "fake" or torch.device(device).type != "cuda":
        return f"the engine is not on a GPU (engine: {config.engine}, device: {device})"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"this machine has no {device}"
    if not find_spec("triton"):
        return "Triton, which computes θ's noise on a GPU, is not installed"
    return None
