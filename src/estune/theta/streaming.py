"""Copy θ in parts from host memory to an engine's device, one part ahead of the kernels.

Only two parts of θ are on the device at a time. Copies have their own stream and come from
page-locked memory, if CUDA can lock it, so that neither the processor nor the kernels wait.
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from estune.theta.shared_memory import SharedTensors

logger = logging.getLogger(__name__)


class Staging:
    """Two buffers on a device, through which parts of θ pass.

    Args:
        elements: of the largest part.
        shared: the memory that θ is in, to be page-locked.
    """

    def __init__(
        self, device: torch.device, elements: int, shared: SharedTensors | None = None
    ) -> None:
        self._device: torch.device = device
        self._module: Any = torch.get_device_module(
            device
        )  # torch.cuda, or torch.cpu, whose streams do nothing
        self._copies = self._module.Stream(device)
        self._buffers = [torch.empty(elements, device=device) for _ in range(2)]
        self._read = [self._module.Event() for _ in self._buffers]
        self._turn = 0
        self._copies.wait_stream(
            self._module.current_stream(device)
        )  # earlier kernels may still use this memory
        if shared and device.type == "cuda":
            lock(shared, device)

    @contextmanager
    def copied(self, theta: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield `theta` copied to the device, as a flat fp32 tensor.

        The block must queue its work in the current stream.
        """
        slot, self._turn = self._turn, 1 - self._turn
        current = self._module.current_stream(self._device)
        with self._module.stream(self._copies):
            self._read[slot].wait(self._copies)
            part = self._buffers[slot][: theta.numel()].copy_(theta, non_blocking=True)
        current.wait_stream(self._copies)
        yield part
        self._read[slot].record(current)


def lock(shared: SharedTensors, device: torch.device) -> bool:
    """Page-lock the memory of `shared` for as long as it lives; return whether that worked.

    If it fails, copies still work, only slower; a warning says so.
    """
    memory, cudart = shared.state.untyped_storage(), torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes(), 0))
    if status:
        logger.warning(
            "θ could not be page-locked (CUDA error %d), so that loading a member takes longer",
            status,
        )
        with suppress(
            RuntimeError
        ):  # CUDA keeps the error, and the next kernel would be blamed for it
            torch.zeros(1, device=device)
        return False
    weakref.finalize(shared, cudart.cudaHostUnregister, memory.data_ptr()).atexit = False
    return True
