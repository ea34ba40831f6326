"""θ, the centre of the search distribution: kept once, exactly, in fp32, under the checkpoint's own names.

A member's weights are always written from θ, never undone by subtraction, so nothing drifts; the update lands in
fp32, so none of it is rounded away. All arithmetic is elementwise, in a fixed order, so θ is the same to the bit on
every device and for any number of threads.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from estune.common.durable import replaced_file
from estune.common.resources import cores
from estune.common.types import Candidate, Unperturbed, Variant
from estune.errors import EngineError, JournalError, ModelError
from estune.noise import kernels, stream
from estune.theta.checkpoint import Checkpoint
from estune.theta.identity import Identity
from estune.theta.shared_memory import Address, Shared
from estune.theta.streaming import Staging

_JOB = (
    1 << 21
)  # elements that one thread takes at a time: several small parameters, or a part of a large one
_AHEAD = (
    1 << 25
)  # elements that may be under way beyond those being handed out, at most: what threads need is two jobs each
_DEVICE_JOB, _DEVICE_AHEAD = (
    1 << 27,
    1 << 28,
)  # the same of θ on a device, where a job is one launch for each parameter

_IDENTITY = "estune"  # the key of a snapshot's metadata

Destination = Callable[[str], torch.Tensor]
Written = tuple[str, kernels.Finite]  # a parameter, and whether what was written of it is finite


@dataclass(frozen=True)
class _Span:
    """Consecutive elements of a parameter: a flat view of θ from element `start` on, and the parameter's streams."""

    name: str
    theta: torch.Tensor
    start: int
    streams: dict[str, int]  # "iid" or "correlated" → t


@dataclass(frozen=True)
class _Batch:
    """Parameters that are written together, and the jobs that it takes."""

    names: list[str]
    jobs: list[list[_Span]]


class Theta:
    """θ of the tuned parameters, name → fp32 tensor, and the operations on it.

    `version` counts the updates that were applied; an update says which version it starts from. In shared memory
    (`share`) other processes of this machine read the same θ (`attach`); only the one that made it updates it.
    `base` is the checkpoint of θ₀, towards which updates may decay: it is read again from its files, not kept.
    θ may be on a device: then all of it on one, and not shared.
    """

    def __init__(
        self,
        theta: Mapping[str, torch.Tensor],
        *,
        version: int = 0,
        threads: int | None = None,
        shared: Shared | None = None,
        base: Checkpoint | None = None,
    ) -> None:
        self.tensors = dict(theta)
        self._base = base
        self._shared = shared
        self._state = (
            shared.state if shared else torch.zeros(1, dtype=torch.int64)
        )  # 2·version, and 1 more while θ is written
        self._device = next((theta.device for theta in self.tensors.values()), torch.device("cpu"))
        self.on_device = kernels.on_device(self._device.type) is not None
        self._batches = _batches(self.tensors, _DEVICE_JOB if self.on_device else _JOB)
        self._staging: dict[torch.device, Staging] = {}
        threads = threads or cores()
        self._ahead = _DEVICE_AHEAD if self.on_device else min(_AHEAD, 2 * threads * _JOB)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="estune-theta")
        if version:
            self._wrote(version)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        names: Iterable[str],
        *,
        device: str = "cpu",
        share: bool = False,
    ) -> "Theta":
        """θ₀: the checkpoint's values of `names`, widened to fp32; with `share`, in memory that others may attach to.

        Raises:
            ModelError: a weight is infinite or not a number.
        """
        shapes = {name: checkpoint.tensors[name].shape for name in names}
        shared = Shared(shapes) if share else None
        tensors = (
            shared.tensors
            if shared
            else {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
        )
        loaded = cls(tensors, shared=shared, base=checkpoint)
        loaded.reset(checkpoint)
        return loaded

    @classmethod
    def attach(cls, address: Address, *, threads: int | None = None) -> "Theta":
        """θ of another process on this machine, to be read. Raises EngineError when it is not there."""
        shared = Shared.attach(address)
        return cls(shared.tensors, threads=threads, shared=shared)

    @property
    def address(self) -> Address | None:
        """Where other processes of this machine attach, when θ is shared."""
        return self._shared.address if self._shared else None

    @property
    def version(self) -> int:
        """The number of updates in θ. Raises EngineError when θ was being written by a process that ended meanwhile."""
        state = int(self._state)
        if state % 2:
            raise EngineError(
                "θ was left half written; it must be rebuilt from a snapshot and the journal"
            )
        return state // 2

    def at(self, version: int) -> bool:
        """Whether θ is whole and has that many updates."""
        return int(self._state) == 2 * version

    def reset(self, checkpoint: Checkpoint) -> None:
        """Go back to θ₀, in place."""
        self._writing()
        for name, theta in self.tensors.items():
            theta.copy_(checkpoint.read(name))
            if not bool(torch.isfinite(theta).all()):
                raise ModelError(
                    f"{checkpoint.folder}: {name} holds weights that are infinite or not a number"
                )
        self._wrote(0)

    def perturbed(
        self, variant: Variant, destination: Destination
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Write the member's weights, rn(fl(θ + fl(s·ε))), and yield (name, tensor) as each is ready.

        Those of a candidate are rn(fl(θ + δ)), δ as in `update`: the bits that the centre has once that is made.

        `destination(name)` is the contiguous tensor to fill, in the engine's dtype; an engine in this process gives
        its own parameters, so that the weights are written once and where they are used.

        Raises:
            ModelError: a weight overflows its dtype.
        """
        if variant.version != self.version:
            raise ModelError(
                f"a member of version {variant.version} cannot be written from θ at version {self.version}"
            )
        waiting: deque[tuple[dict[str, torch.Tensor], list[Future[list[Written]]]]] = deque()
        ahead = 0
        for batch in self._batches:
            out = {name: destination(name) for name in batch.names}
            waiting.append((out, self._begin(variant, batch, out)))
            ahead += sum(tensor.numel() for tensor in out.values())
            while ahead > self._ahead:
                ahead -= sum(tensor.numel() for tensor in waiting[0][0].values())
                yield from _finished(*waiting.popleft())
        while waiting:
            yield from _finished(*waiting.popleft())

    def update(
        self,
        seeds: list[int],
        coefficients: list[float],
        *,
        noise: str,
        version: int,
        decay: float = 0.0,
    ) -> None:
        """θ ← fl(θ + δ), δ = Σ cₙ·εₙ in the seeds' order; an update from another version than θ's is not applied.

        With `decay` d, first θ ← fl(θ₀ + fl(fl(1−d)·fl(θ−θ₀))). An update that arrives twice is so applied once. Empty
        coefficients only count as a version: nothing decays then either.

        Raises:
            JournalError: the update is from another version, has not one coefficient a seed, or d is not from 0 to 1.
            ModelError: the base model, which a decay needs, cannot be read.
        """
        if version == self.version - 1:
            return  # a repetition of the one just applied
        if version != self.version:
            raise JournalError(
                f"an update from version {version} cannot be applied to θ at version {self.version}"
            )
        if coefficients and len(coefficients) != len(seeds):
            raise JournalError(
                f"an update has {len(coefficients)} coefficients for {len(seeds)} seeds"
            )
        if not 0 <= decay <= 1:
            raise JournalError(f"an update decays by {decay}, which is not from 0 to 1")
        if decay and self._base is None:
            raise ModelError("an update that decays needs the base model, and this centre has none")
        self._writing()
        if coefficients:
            base = self._base_values if decay else None
            jobs = [job for batch in self._batches for job in batch.jobs]
            spread = map if self.on_device else self._pool.map
            list(
                spread(lambda job: _update_job(job, seeds, coefficients, noise, decay, base), jobs)
            )
        self._wrote(version + 1)

    def digest(self) -> str:
        """BLAKE2b-128 over the parameters in sorted order: each its name, a zero byte, and its values' BLAKE2b-128."""
        names = sorted(self.tensors)
        whole = hashlib.blake2b(digest_size=16)
        for name, digest in zip(
            names, self._pool.map(lambda name: _digest(self.tensors[name]), names), strict=True
        ):
            whole.update(name.encode() + b"\0" + digest)
        return whole.hexdigest()

    def root_mean_square(self) -> float:
        """Of all weights of θ; its last digits depend on the number of threads."""
        parts = [
            part for theta in self.tensors.values() for part in torch.split(theta.view(-1), _JOB)
        ]
        squares = self._pool.map(lambda theta: float(theta.double().square().sum()), parts)
        return math.sqrt(math.fsum(squares) / sum(theta.numel() for theta in parts))

    def save(self, path: Path, identity: Identity | None = None) -> None:
        """Write θ in fp32, durably, and which θ it is."""
        identity = identity or Identity("", self.version, self.digest())
        with replaced_file(
            path
        ) as scratch:  # one key alone: safetensors writes several in an order that varies
            save_file(self.tensors, scratch, metadata={_IDENTITY: json.dumps(asdict(identity))})

    def restore(self, path: Path) -> None:
        """Read θ and its version from a file that `save` wrote.

        Raises:
            JournalError: the file is damaged or holds other parameters.
        """
        self._writing()
        try:
            with safe_open(path, "pt") as file:
                for name, theta in self.tensors.items():
                    stored = file.get_tensor(name)
                    if (stored.dtype, stored.shape) != (theta.dtype, theta.shape):
                        raise ValueError(
                            f"{name} has another shape or dtype"
                        )  # copy_ would broadcast and convert
                    theta.copy_(stored)
                self._wrote(_version(file.metadata()))
        except Exception as error:  # safetensors raises several kinds
            raise JournalError(f"{path}: not a snapshot of this model's θ ({error})") from None

    def put(self, name: str, flat: slice, values: torch.Tensor) -> None:
        """Take part of another replica's θ; `became` follows the last part."""
        self._writing()
        self.tensors[name].view(-1)[flat] = values

    def became(self, version: int) -> None:
        """θ was put in whole, and is that of `version`."""
        self._wrote(version)

    def _begin(
        self, variant: Variant, batch: _Batch, out: Mapping[str, torch.Tensor]
    ) -> list[Future[list[Written]]]:
        """The jobs of a batch, under way: with threads on a CPU; on a device they are only queued, in the caller's stream."""
        there = out[batch.names[0]].device
        if self.on_device:
            return [_known(_perturb_job(variant, job, out)) for job in batch.jobs]
        if kernels.compiled(there.type):
            staging = self._staging.get(there) or self._staging.setdefault(
                there, Staging(there, _JOB, self._shared)
            )
            return [_known(_stream_job(staging, variant, job, out)) for job in batch.jobs]
        return [self._pool.submit(_perturb_job, variant, job, out) for job in batch.jobs]

    def _base_values(self, span: _Span) -> torch.Tensor:
        """θ₀ of a span, in the file's dtype: mapped rather than read, so that it takes no memory of its own."""
        assert self._base is not None
        try:
            return self._base.read(span.name).view(-1)[span.start : span.start + span.theta.numel()]
        except ModelError as error:
            raise ModelError(
                f"the base model, which weight_decay needs, cannot be read any more: {error}"
            ) from error

    def _writing(self) -> None:
        self._state |= 1

    def _wrote(self, version: int) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(
                self._device
            )  # who reads θ next may do so in another stream
        self._state[0] = 2 * version


def snapshot_identity(path: Path) -> Identity | None:
    """Which θ a snapshot says that it is; None where it is damaged, or of a version that did not say so."""
    try:
        with safe_open(path, "pt") as file:
            return Identity(**json.loads(file.metadata()[_IDENTITY]))
    except Exception:  # safetensors raises several kinds
        return None


def _version(metadata: Mapping[str, str]) -> int:
    """The step of a snapshot; `version` is what earlier versions wrote."""
    return int(
        json.loads(metadata[_IDENTITY])["step"] if _IDENTITY in metadata else metadata["version"]
    )


def _batches(theta: Mapping[str, torch.Tensor], most: int) -> list[_Batch]:
    """Small parameters share a job, a large one is cut into several, so that jobs are neither many nor long."""
    batches: list[_Batch] = []
    room = 0
    for name, tensor in theta.items():
        spans = _cut(name, tensor.view(-1), most)
        if tensor.numel() > room or not batches:
            batches.append(_Batch([name], [[span] for span in spans] or [[]]))
            room = max(0, most - tensor.numel())
        else:
            batches[-1].names.append(name)
            batches[-1].jobs[-1].extend(spans)
            room -= tensor.numel()
    return batches


def _cut(name: str, flat: torch.Tensor, most: int) -> list[_Span]:
    streams = {"iid": stream(name), "correlated": stream(name, correlated=True)}
    return [
        _Span(name, flat[start : start + most], start, streams)
        for start in range(0, flat.numel(), most)
    ]


def _perturb_job(
    variant: Variant, job: list[_Span], out: Mapping[str, torch.Tensor]
) -> list[Written]:
    """Write the member's weights for the spans of `job`."""
    return [(span.name, _perturb(variant, span, out[span.name].view(-1))) for span in job]


@torch.inference_mode()
def _stream_job(
    staging: Staging, variant: Variant, job: list[_Span], out: Mapping[str, torch.Tensor]
) -> list[Written]:
    """The same on another device than θ's."""
    written: list[Written] = []
    for span in job:
        with staging.copied(span.theta) as theta:
            written += _perturb_job(variant, [replace(span, theta=theta)], out)
    return written


def _known(written: list[Written]) -> Future[list[Written]]:
    future: Future[list[Written]] = Future()
    future.set_result(written)
    return future


@torch.inference_mode()  # an engine's tensors may be inference tensors, which nothing else may write to
def _perturb(variant: Variant, span: _Span, out: torch.Tensor) -> kernels.Finite:
    theta, target = span.theta, out[span.start : span.start + span.theta.numel()]
    if isinstance(variant, Unperturbed):
        return torch.isfinite(target.copy_(theta)).all()
    t = span.streams[variant.noise]
    if isinstance(variant, Candidate):
        moved = theta.clone()
        kernels.update(moved, list(variant.coefficients), list(variant.seeds), t, span.start)
        return torch.isfinite(target.copy_(moved)).all()
    scale = variant.sign * float(np.float32(variant.sigma))
    if out.device == theta.device:
        return kernels.perturb(theta, scale, variant.seed, t, span.start, target)
    here = torch.empty(theta.shape, dtype=out.dtype, device=theta.device)
    finite = kernels.perturb(theta, scale, variant.seed, t, span.start, here)
    target.copy_(here)
    return finite


def _update_job(
    job: list[_Span],
    seeds: list[int],
    coefficients: list[float],
    noise: str,
    d: float,
    base: Callable[[_Span], torch.Tensor] | None,
) -> None:
    for span in job:
        if base:
            kernels.decay(span.theta, base(span), d)
        kernels.update(span.theta, coefficients, seeds, span.streams[noise], span.start)


def _finished(
    out: Mapping[str, torch.Tensor], jobs: list[Future[list[Written]]]
) -> Iterator[tuple[str, torch.Tensor]]:
    written = [
        one for job in jobs for one in job.result()
    ]  # all of them are waited for, even when one overflows
    finite = [known for _, known in written]
    if tensors := [known for known in finite if isinstance(known, torch.Tensor)]:
        finite = torch.stack(
            tensors
        ).tolist()  # all at once: each time the device is waited for it stands still
    for (name, _), known in zip(written, finite, strict=True):
        if not known:
            raise ModelError(
                f"{name} overflows {out[name].dtype}; choose bfloat16 or float32 as dtype"
            )
    for name, tensor in out.items():
        yield name, tensor


def _digest(theta: torch.Tensor) -> bytes:
    return hashlib.blake2b(
        theta.cpu().numpy().astype("<f4", copy=False).data, digest_size=16
    ).digest()
