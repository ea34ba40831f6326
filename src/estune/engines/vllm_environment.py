"""What has to be so around vLLM when it is imported and starts: environment variables, and a module that it must not see."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from estune.config import ESConfig


def set_environment(config: ESConfig, on_cpu: bool) -> None:
    """What vLLM reads when it is imported; what the user set stays."""
    usual = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: it ends with it, and its errors arrive
        "VLLM_HOST_IP": "127.0.0.1",  # nothing listens beyond this machine
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if on_cpu:
        ranks, there = config.vllm_tensor_parallel_size, sorted(os.sched_getaffinity(0))
        part = max(1, len(there) // ranks)
        lists = [
            ",".join(map(str, there[rank * part : (rank + 1) * part] or there[-1:]))
            for rank in range(ranks)
        ]
        usual["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(lists) if ranks > 1 else "nobind"
    for name, value in usual.items():
        os.environ.setdefault(name, value)


@contextmanager
def unseen(module: str) -> Iterator[None]:
    """vLLM looks into every module for Triton kernels when it starts, and fails on an object of this one of numba's."""
    hidden = sys.modules.pop(module, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[module] = hidden
