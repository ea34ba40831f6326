"""Where θ lives: on the engine's GPU if both fit there, else in host memory.

This is decided from sizes before anything is loaded; the engine's size is that of `estune plan`.
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
_VLLM_PART = 0.92  # vLLM's default gpu_memory_utilization


@dataclass(frozen=True)
class Placement:
    """The device that holds θ ("cpu": host memory), and a one-line explanation for the log."""

    device: str
    why: str = ""


def place_theta(config: ESConfig, device: str, theta: int, engine: Callable[[], int]) -> Placement:
    """Return where θ goes.

    Args:
        config: the settings; `center_device` is the user's wish.
        device: the engine's device.
        theta: bytes of θ.
        engine: returns the bytes that the transformers engine takes of a GPU.

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
    taken = vllm_takes(config, total) if config.engine == "vllm" else engine()
    return choose(wanted, theta, taken, free, device)


def choose(wanted: str, theta: int, engine: int, free: int, device: str) -> Placement:
    """Return where θ goes, given the bytes of θ, of the engine, and those free on the device.

    Raises:
        ResourceError: `wanted` is "cuda", and θ does not fit.
    """
    needs = f"{amount(theta)} plus {amount(engine)} for the engine and {amount(RESERVE)} in reserve"
    if theta + engine + RESERVE <= free:
        return Placement(device, f"θ is on {device}, which has {amount(free)} free: {needs}")
    short = f"{device} has {amount(free)} free, not {needs}"
    if wanted == "cuda":
        raise ResourceError(
            f"center_device: θ does not fit: {short}; "
            "choose auto or cpu, or let the engine take less"
        )
    return Placement("cpu", f"θ is in host memory, because {short}")


def vllm_takes(config: ESConfig, total: int) -> int:
    """Return the bytes that vLLM takes of a GPU with `total` bytes, for weights and cache."""
    given = config.vllm_gpu_memory_utilization
    part = (config.engine_kwargs or {}).get("gpu_memory_utilization", given)
    return int(total * (_VLLM_PART if part is None else part))


def _obstacle(config: ESConfig, device: str) -> str | None:
    """Return why θ cannot be on a GPU, whatever its size."""
    if config.workers != "local":
        return f"workers: {config.workers} has engines in other processes, which read host memory"
    if config.vllm_tensor_parallel_size > 1:
        return "the processes of vllm_tensor_parallel_size read it in host memory"
    if config.engine == "vllm" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") != "0":
        return "VLLM_ENABLE_V1_MULTIPROCESSING puts vLLM into another process"
    if config.engine == "fake" or torch.device(device).type != "cuda":
        return f"the engine is not on one (engine: {config.engine}, device: {device})"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"this machine has no {device}"
    return None if find_spec("triton") else "Triton, which makes its noise there, is not installed"
