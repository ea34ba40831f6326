"""θ on its way from host memory to the device of an engine: while a kernel reads one part there, the next is being copied.

The device holds two parts of θ at a time and nothing else of it. Copies have a stream of their own and come from
page-locked memory, where CUDA lets it be locked, so that neither the processor nor the kernels wait for one another.
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
        )  # which may still use what memory the buffers got
        if shared and device.type == "cuda":
            lock(shared, device)

    @contextmanager
    def copied(self, theta: torch.Tensor) -> Iterator[torch.Tensor]:
        """A part of θ on the device, (B,), for work that is queued in the current stream before the block ends."""
        slot, self._turn = self._turn, 1 - self._turn
        current = self._module.current_stream(self._device)
        with self._module.stream(self._copies):
            self._read[slot].wait(self._copies)
            part = self._buffers[slot][: theta.numel()].copy_(theta, non_blocking=True)
        current.wait_stream(self._copies)
        yield part
        self._read[slot].record(current)


def lock(shared: SharedTensors, device: torch.device) -> bool:
    """Page-lock what `shared` maps, for as long as it lives. Without that copies are right too, but slower, which a line says."""
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
