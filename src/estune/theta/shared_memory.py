"""Tensors in memory that several processes of one machine map, so that θ is kept once for all of its engines.

The memory belongs to no file system (Linux's memfd), is bound to no limit on /dev/shm, and goes when the last process
that maps it ends, however it ends.
"""

import math
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from estune.errors import EngineError

_ALIGNMENT = 64  # bytes: a cache line
_HEADER = 64  # bytes: a token of 8, and the state


@dataclass(frozen=True)
class Address:
    """Where another process of this machine finds the tensors. Plain data, to be sent."""

    path: str
    token: int  # tells this memory from another that has the same path on another machine
    shapes: dict[str, tuple[int, ...]]


class SharedTensors:
    """fp32 tensors by name, and one int64 `state` beside them, in shared memory.

    Raises:
        EngineError: the address is not of this machine, or its owner has ended.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._descriptor, path = _memory()
        size = _HEADER + sum(_room(shape) for shape in shapes.values())
        os.ftruncate(self._descriptor, size)
        self.address = Address(path, secrets.randbits(62), dict(shapes))
        self.state, self.tensors = _mapped(self.address, write_token=True)

    @classmethod
    def attach(cls, address: Address) -> "SharedTensors":
        """Map what another process made."""
        shared = cls.__new__(cls)
        shared._descriptor = -1
        shared.address = address
        shared.state, shared.tensors = _mapped(address)
        return shared

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)


def _memory() -> tuple[int, str]:
    """A descriptor of new memory, and the path under which other processes open it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("estune-theta")
        return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
    return tempfile.mkstemp(prefix="estune-theta-")


def _mapped(
    address: Address, *, write_token: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    size = _HEADER + sum(_room(shape) for shape in address.shapes.values())
    path = Path(address.path)
    if not path.exists() or path.stat().st_size != size:
        raise EngineError(
            f"{address.path}: the θ that is shared there is not to be found on this machine"
        )
    raw = torch.from_file(address.path, shared=True, size=size, dtype=torch.uint8)
    header = raw[:_HEADER].view(torch.int64)
    if write_token:
        header[0] = address.token
    if int(header[0]) != address.token:
        raise EngineError(f"{address.path}: another θ than the one that was named is shared there")
    tensors, at = {}, _HEADER
    for name, shape in address.shapes.items():
        tensors[name] = raw[at : at + 4 * math.prod(shape)].view(torch.float32).view(shape)
        at += _room(shape)
    return header[1:2], tensors


def _room(shape: tuple[int, ...]) -> int:
    return -(-4 * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
