"""Tensors in memory that several processes of one machine map, so that θ is kept once.

The memory belongs to no file system (Linux's memfd), so no limit on /dev/shm applies, and it is
freed when the last process that maps it ends, however it ends.
"""

import math
import os
import secrets
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

from estune.errors import EngineError

_ALIGNMENT = 64  # bytes: a cache line
_HEADER = 64  # bytes: a token of 8, and the state


@dataclass(frozen=True)
class Address:
    """Where another process of this machine finds the tensors; plain data, to be sent."""

    path: str
    token: int  # tells this memory from another machine's at the same path
    shapes: dict[str, tuple[int, ...]]


class SharedTensors:
    """fp32 tensors by name and one int64 `state`, in shared memory.

    Raises:
        EngineError: `address` is another machine's, or the process that owned it has ended.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.state, self.tensors = _map(address)

    @classmethod
    def create(cls, shapes: dict[str, tuple[int, ...]]) -> "SharedTensors":
        """Return new tensors, filled with zeros; others can attach while this object lives."""
        descriptor, path = _memory()
        address = Address(path, secrets.randbits(62), dict(shapes))
        os.ftruncate(descriptor, _size(address))
        os.pwrite(descriptor, address.token.to_bytes(8, sys.byteorder), 0)
        shared = cls(address)
        weakref.finalize(shared, os.close, descriptor)
        return shared


def _memory() -> tuple[int, str]:
    """Return a descriptor of new memory, and the path at which other processes open it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("estune-theta")
        return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
    return tempfile.mkstemp(prefix="estune-theta-")


def _map(address: Address) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the state and the tensors."""
    size, path = _size(address), Path(address.path)
    if not path.exists() or path.stat().st_size != size:
        raise EngineError(f"{path}: the θ that was shared there is not on this machine")
    memory = torch.from_file(address.path, shared=True, size=size, dtype=torch.uint8)
    header = memory[:_HEADER].view(torch.int64)
    if int(header[0]) != address.token:
        raise EngineError(f"{path}: another θ than the requested one is shared there")
    tensors = {}
    start = _HEADER
    for name, shape in address.shapes.items():
        flat = memory[start : start + 4 * math.prod(shape)].view(torch.float32)
        tensors[name] = flat.view(shape)
        start += _room(shape)
    return header[1:2], tensors


def _size(address: Address) -> int:
    return _HEADER + sum(map(_room, address.shapes.values()))


def _room(shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes, up to the next one."""
    return math.ceil(4 * math.prod(shape) / _ALIGNMENT) * _ALIGNMENT
