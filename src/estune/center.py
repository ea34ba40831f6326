"""θ, the centre of the search distribution: kept once, exactly, in fp32, under the checkpoint's own names.

A member's weights are always written from θ, never undone by subtraction, so nothing drifts; the update lands in
fp32, so none of it is rounded away. All arithmetic is elementwise, in a fixed order, so θ is the same to the bit on
every device and for any number of threads.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from estune.checkpoint import Checkpoint
from estune.durable import replaced_file
from estune.errors import JournalError, ModelError
from estune.member import Member
from estune.noise import stream
from estune.noise.kernels import perturb, update
from estune.resources import cores

_SPAN = 1 << 20  # elements that one thread takes at a time
_AHEAD = 1 << 25  # elements that may be under way beyond the tensor being handed out

Destination = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class _Span:
    """Consecutive elements of a parameter: a flat view of θ from element `start` on, and the parameter's streams."""

    theta: torch.Tensor
    start: int
    streams: dict[str, int]  # "iid" or "correlated" → t


class Center:
    """θ of the tuned parameters, name → fp32 tensor, and the operations on it.

    `version` counts the updates that were applied; an update says which version it starts from.
    """

    def __init__(self, theta: Mapping[str, torch.Tensor], *, version: int = 0, threads: int | None = None) -> None:
        self.theta = dict(theta)
        self.version = version
        self._spans = {name: _cut(name, tensor.view(-1)) for name, tensor in self.theta.items()}
        self._pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="estune-center")

    @classmethod
    def load(cls, checkpoint: Checkpoint, names: Iterable[str], *, device: str = "cpu") -> "Center":
        """θ₀: the checkpoint's values of `names`, widened to fp32.

        Raises:
            ModelError: a weight is infinite or not a number.
        """
        shapes = {name: checkpoint.tensors[name].shape for name in names}
        center = cls({name: torch.empty(shape, device=device) for name, shape in shapes.items()})
        center.reset(checkpoint)
        return center

    def reset(self, checkpoint: Checkpoint) -> None:
        """Go back to θ₀, in place."""
        for name, theta in self.theta.items():
            theta.copy_(checkpoint.read(name))
            if not bool(torch.isfinite(theta).all()):
                raise ModelError(f"{checkpoint.folder}: {name} holds weights that are infinite or not a number")
        self.version = 0

    def perturbed(self, member: Member, destination: Destination) -> Iterator[tuple[str, slice, torch.Tensor]]:
        """Write the member's weights, rn(fl(θ + fl(s·ε))), and yield (name, flat range, tensor) as each is ready.

        `destination(name)` is the contiguous tensor to fill, in the engine's dtype; an engine in this process gives
        its own parameters, so that the weights are written once and where they are used.

        Raises:
            ModelError: a weight overflows its dtype.
        """
        if member.version != self.version:
            raise ModelError(f"a member of version {member.version} was asked of a centre at version {self.version}")
        waiting: deque[tuple[str, torch.Tensor, list[Future[bool]]]] = deque()
        ahead = 0
        for name, theta in self.theta.items():
            out = destination(name)
            flat = out.view(-1)
            waiting.append((name, out, [self._pool.submit(_perturb, member, span, flat) for span in self._spans[name]]))
            ahead += theta.numel()
            while ahead > _AHEAD:
                ready = _finished(*waiting.popleft())
                ahead -= ready[2].numel()
                yield ready
        while waiting:
            yield _finished(*waiting.popleft())

    def update(self, seeds: list[int], coefficients: list[float], *, noise: str, version: int) -> None:
        """θ ← fl(θ + δ), δ = Σ cₙ·εₙ in the seeds' order; an update from another version than θ's is not applied.

        An update that arrives twice is so applied once. Empty coefficients only count as a version.
        """
        if version == self.version - 1:
            return  # a repetition of the one just applied
        if version != self.version:
            raise JournalError(f"an update from version {version} cannot be applied to θ at version {self.version}")
        if coefficients:
            spans = [span for spans in self._spans.values() for span in spans]
            list(self._pool.map(lambda s: update(s.theta, coefficients, seeds, s.streams[noise], s.start), spans))
        self.version += 1

    def digest(self) -> str:
        """BLAKE2b-128 over the parameters in sorted order: each its name, a zero byte, and its values' BLAKE2b-128."""
        names = sorted(self.theta)
        whole = hashlib.blake2b(digest_size=16)
        for name, digest in zip(names, self._pool.map(lambda name: _digest(self.theta[name]), names), strict=True):
            whole.update(name.encode() + b"\0" + digest)
        return whole.hexdigest()

    def save(self, path: Path) -> None:
        """Write θ in fp32, durably."""
        with replaced_file(path) as scratch:
            save_file(self.theta, scratch, metadata={"version": str(self.version)})

    def restore(self, path: Path) -> None:
        """Read θ and its version from a file that `save` wrote.

        Raises:
            JournalError: the file is damaged or holds other parameters.
        """
        try:
            with safe_open(path, "pt") as file:
                for name, theta in self.theta.items():
                    theta.copy_(file.get_tensor(name))
                self.version = int(file.metadata()["version"])
        except Exception as error:  # safetensors raises several kinds
            raise JournalError(f"{path}: not a snapshot of this model's θ ({error})") from None


def _cut(name: str, flat: torch.Tensor) -> list[_Span]:
    streams = {"iid": stream(name), "correlated": stream(name, correlated=True)}
    return [_Span(flat[start : start + _SPAN], start, streams) for start in range(0, flat.numel(), _SPAN)]


def _perturb(member: Member, span: _Span, out: torch.Tensor) -> bool:
    """Write the member's weights for `span` into its place in the flat `out`; returns whether all are finite."""
    theta, target = span.theta, out[span.start : span.start + span.theta.numel()]
    scale, t = member.sign * float(np.float32(member.sigma)), span.streams[member.noise]
    if out.device == theta.device:
        return perturb(theta, scale, member.seed, t, span.start, target)
    here = torch.empty(theta.shape, dtype=out.dtype, device=theta.device)
    finite = perturb(theta, scale, member.seed, t, span.start, here)
    target.copy_(here)
    return finite


def _finished(name: str, out: torch.Tensor, parts: list[Future[bool]]) -> tuple[str, slice, torch.Tensor]:
    finite = [part.result() for part in parts]  # all of them are waited for, even when one is not
    if not all(finite):
        raise ModelError(f"{name} overflows {out.dtype}; choose bfloat16 or float32 as dtype")
    return name, slice(0, out.numel()), out


def _digest(theta: torch.Tensor) -> bytes:
    return hashlib.blake2b(theta.cpu().numpy().astype("<f4", copy=False).data, digest_size=16).digest()
