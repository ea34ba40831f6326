"""Where θ lives: on the engine's GPU where there is room for it beside the engine, else in the machine's memory.

It is decided before anything is loaded, from sizes alone: what the engine will take is that of `estune plan`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from estune.common.resources import amount
from estune.config import ESConfig
from estune.engines.device import engine_device
from estune.errors import ConfigError, ResourceError

RESERVE = (
    2 << 30
)  # bytes of a GPU that are left alone: for what kernels and engine need for a moment, and fragments
_VLLM_PART = 0.92  # of a GPU's memory, which vLLM takes when nothing else is asked for


@dataclass(frozen=True)
class Placement:
    """torch's name of a device, `cpu` for host memory; and the reason, as a line, where there is something to say."""

    device: str
    why: str = ""


def place_theta(config: ESConfig, theta: int, engine: Callable[[], int]) -> Placement:
    """Where θ, of so many bytes, goes; `engine()` is what transformers takes of a GPU.

    Raises:
        ConfigError: θ is wanted on a GPU where there is none, or where other processes have to read it.
        ResourceError: θ is wanted on a GPU where it does not fit.
    """
    wanted, device = config.center_device, engine_device(config)
    if wanted == "cpu":
        return Placement("cpu", "θ is in host memory, as center_device says")
    if obstacle := _obstacle(config, device):
        if wanted == "cuda":
            raise ConfigError(
                f"center_device: θ cannot be on a GPU, because {obstacle}; choose auto or cpu"
            )
        return Placement(
            "cpu", f"θ is in host memory, because {obstacle}" if torch.cuda.is_available() else ""
        )
    free, total = torch.cuda.mem_get_info(device)
    return choose(
        wanted,
        theta,
        vllm_takes(config, total) if config.engine == "vllm" else engine(),
        free,
        device,
    )


def choose(wanted: str, theta: int, engine: int, free: int, device: str) -> Placement:
    """Whether θ goes to the device, which has `free` bytes, of which the engine will take some. Raises ResourceError."""
    needs = (
        f"{amount(theta)} beside {amount(engine)} for the engine and {amount(RESERVE)} in reserve"
    )
    if theta + engine + RESERVE <= free:
        return Placement(device, f"θ is on {device}, which has {amount(free)} free: {needs}")
    short = f"{device} has {amount(free)} free, not {needs}"
    if wanted == "cuda":
        raise ResourceError(
            f"center_device: θ does not fit: {short}; choose auto or cpu, or let the engine take less"
        )
    return Placement("cpu", f"θ is in host memory, because {short}")


def vllm_takes(config: ESConfig, total: int) -> int:
    """Bytes of a GPU that vLLM takes, for weights and cache."""
    given = (config.engine_kwargs or {}).get(
        "gpu_memory_utilization", config.vllm_gpu_memory_utilization
    )
    return int(total * (_VLLM_PART if given is None else given))


def _obstacle(config: ESConfig, device: str) -> str | None:
    """Why θ cannot be on a GPU, whatever its size."""
    if config.workers != "local":
        return f"workers: {config.workers} has engines in other processes, which read it in host memory"
    if config.vllm_tensor_parallel_size > 1:
        return "the processes of vllm_tensor_parallel_size read it in host memory"
    if config.engine == "vllm" and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") != "0":
        return "VLLM_ENABLE_V1_MULTIPROCESSING puts vLLM into another process"
    if config.engine == "fake" or torch.device(device).type != "cuda":
        return f"the engine is not on one (engine: {config.engine}, device: {device})"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"there is no {device} here"
    return None if find_spec("triton") else "Triton, which makes its noise there, is not installed"
