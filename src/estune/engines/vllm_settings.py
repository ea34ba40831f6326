"""The settings for vLLM: environment variables, which it reads on import, and arguments."""

import os
from pathlib import Path
from typing import Any

import torch

from estune.config import ESConfig
from estune.engines.device import dtype_name

CPU_CACHE = 4 << 30  # bytes for keys and values on a CPU


def set_environment(config: ESConfig, on_cpu: bool) -> None:
    """Set environment variables that vLLM reads, except those that the user has set."""
    defaults = {
        # Run the engine in this process, so that it ends with it and its exceptions reach us.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",  # other machines cannot connect
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if on_cpu:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = _cores_per_rank(config.vllm_tensor_parallel_size)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _cores_per_rank(ranks: int) -> str:
    """Return the cores of each rank in vLLM's notation, such as `0,1|2,3`."""
    if ranks == 1:
        return "nobind"
    cores = sorted(os.sched_getaffinity(0))
    part = max(1, len(cores) // ranks)
    shares = [cores[rank * part : (rank + 1) * part] or cores[-1:] for rank in range(ranks)]
    return "|".join(",".join(map(str, share)) for share in shares)


def llm_arguments(
    folder: Path, config: ESConfig, on_cpu: bool, dtype: torch.dtype, extension: str
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`; `extension` names the class to mix into its workers."""
    arguments = model_arguments(config, dtype)
    arguments |= {
        "model": str(folder),
        "model_impl": config.vllm_model_impl,
        # Ignore the model's own sampling settings: greedy means the likeliest token.
        "generation_config": "vllm",
        "worker_extension_cls": extension,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    limited = "gpu_memory_utilization" in arguments or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if on_cpu and not limited:
        arguments["kv_cache_memory_bytes"] = CPU_CACHE
    if config.vllm_tensor_parallel_size > 1:
        arguments["distributed_executor_backend"] = "mp"
    return arguments | (config.engine_kwargs or {})


def model_arguments(config: ESConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the settings in `config` that concern the model, with vLLM's names."""
    arguments = {
        "dtype": dtype_name(dtype),
        "trust_remote_code": config.trust_remote_code,
        "tensor_parallel_size": config.vllm_tensor_parallel_size,
        "enforce_eager": config.vllm_enforce_eager,
        "gpu_memory_utilization": config.vllm_gpu_memory_utilization,
        "max_model_len": config.vllm_max_model_length,
    }
    return {name: value for name, value in arguments.items() if value is not None}
