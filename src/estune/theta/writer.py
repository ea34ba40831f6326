"""Write θ's variants into an engine's tensors, and updates into θ, in jobs of bounded size.

All arithmetic is fp32 and never fused; fl rounds to fp32, rn to the dtype of the engine's tensor:

    (1) member      w = rn(fl(θ + fl(s·ε))) with s = fp32(sign·σ)
    (2) update      δ ← fl(δ + fl(cₙ·εₙ)) for each seed in order, from δ = 0; then θ ← fl(θ + δ)
    (3) decay       θ ← fl(θ₀ + fl(fl(1−d)·fl(θ−θ₀))), before (2)

Each is elementwise and in a fixed order, so jobs, threads and devices do not matter to the bits.
Jobs run in threads on a CPU; on a device they are queued in the caller's stream. From host memory
to a device, θ passes through two buffers (streaming.py).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from estune.common.types import Candidate, ThetaUpdate, Unperturbed, Variant
from estune.errors import ModelError
from estune.noise import kernels, stream
from estune.theta.checkpoint import Checkpoint
from estune.theta.shared_memory import SharedTensors
from estune.theta.streaming import Staging

HOST_JOB = 1 << 21  # elements that one thread takes at a time
DEVICE_JOB = 1 << 27  # the same on a GPU; larger, because each job launches a kernel per parameter
_FEW_ROWS = 32  # bf16 elements in a cache line
_HOST_AHEAD = 1 << 25  # elements that may be written before the caller takes the first
_DEVICE_AHEAD = 1 << 28

Destination = Callable[[str], torch.Tensor]  # the tensor to fill; it may be strided


@dataclass(frozen=True)
class _Span:
    """Consecutive elements of a parameter: a flat view of θ, from element `start` on."""

    name: str
    theta: torch.Tensor
    start: int

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return the same elements of another tensor of the parameter's size."""
        return parameter.view(-1)[self.start : self.start + self.theta.numel()]

    def noise_stream(self, noise: str) -> int:
        """Return t, the noise stream of the parameter."""
        return stream(self.name, correlated=noise == "correlated")


@dataclass
class _Batch:
    """Parameters that are written together, and the jobs that write them."""

    names: list[str]
    jobs: list[list[_Span]]


@dataclass(frozen=True)
class _Pending:
    """A batch in progress: its tensors, and per job which parameters were finite."""

    out: dict[str, torch.Tensor]
    jobs: Iterable[list[tuple[str, kernels.Finite]]]

    @property
    def size(self) -> int:
        return sum(tensor.numel() for tensor in self.out.values())

    def finished(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Wait for the jobs and yield the tensors. Raises ModelError for one that overflowed."""
        written = [one for job in self.jobs for one in job]
        finite = _on_host([is_finite for _, is_finite in written])
        for (name, _), is_finite in zip(written, finite, strict=True):
            if not is_finite:
                dtype = self.out[name].dtype
                raise ModelError(f"{name} overflows {dtype}; choose bfloat16 or float32 as dtype")
        yield from self.out.items()


class Writer:
    """Writes variants of one θ and updates it.

    Args:
        tensors: θ by name, fp32, all on `device`.
        threads: how many jobs run at a time on a CPU.
        shared: the memory that holds `tensors`, if it is shared.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        device: torch.device,
        threads: int,
        shared: SharedTensors | None,
    ) -> None:
        self.threads = threads
        self.staging: dict[torch.device, Staging] = {}
        self.on_device = kernels.on_device(device.type) is not None
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="estune-theta")
        self._shared = shared
        self._batches = _batches(tensors, DEVICE_JOB if self.on_device else HOST_JOB)
        self._ahead = _DEVICE_AHEAD if self.on_device else min(_HOST_AHEAD, 2 * threads * HOST_JOB)

    def write(
        self, variant: Variant, destination: Destination
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Write a variant's weights, and yield (name, tensor) as each is ready."""
        pending: deque[_Pending] = deque()
        ahead = 0
        for batch in self._batches:
            pending.append(self._begin(variant, batch, destination))
            ahead += pending[-1].size
            while ahead > self._ahead:
                ahead -= pending[0].size
                yield from pending.popleft().finished()
        while pending:
            yield from pending.popleft().finished()

    def update(self, update: ThetaUpdate, base: Checkpoint | None) -> None:
        """Update θ in place: with a decay, equation (3) towards `base`; then equation (2)."""

        def update_job(job: list[_Span]) -> None:
            for span in job:
                if update.decay:
                    assert base is not None
                    kernels.decay(span.theta, _base_values(base, span), update.decay)  # (3)
                t = span.noise_stream(update.noise)
                kernels.update(span.theta, update.coefficients, update.seeds, t, span.start)  # (2)

        jobs = [job for batch in self._batches for job in batch.jobs]
        run = map if self.on_device else self.pool.map
        list(run(update_job, jobs))  # waits, and raises what a job raised

    def _begin(self, variant: Variant, batch: _Batch, destination: Destination) -> _Pending:
        out = {name: destination(name) for name in batch.names}
        staging = self._staging_for(out[batch.names[0]].device)
        write = partial(_write_job, variant, out, staging)
        if self.on_device or staging:
            return _Pending(out, [write(job) for job in batch.jobs])
        return _Pending(out, self.pool.map(write, batch.jobs))

    def _staging_for(self, target: torch.device) -> Staging | None:
        """Return the buffers for copying θ to `target`; None if none are needed or possible."""
        if self.on_device or not kernels.compiled(target.type):
            return None
        if target not in self.staging:
            self.staging[target] = Staging(target, HOST_JOB, self._shared)
        return self.staging[target]


@torch.inference_mode()  # an engine's tensors may be inference tensors, writable only in this mode
def _write_job(
    variant: Variant, out: Mapping[str, torch.Tensor], staging: Staging | None, job: list[_Span]
) -> list[tuple[str, kernels.Finite]]:
    """Write the spans of `job`; return per span its parameter's name and whether it is finite."""
    written = []
    for span in job:
        target = out[span.name]
        copied = staging.copied(span.theta) if staging else nullcontext(span.theta)
        with copied as theta:
            if target.is_contiguous():
                finite = _write(variant, span, theta, span.of(target))
            else:
                finite = _write_strided(variant, span, theta, target)
        written.append((span.name, finite))
    return written


def _write_strided(
    variant: Variant, span: _Span, theta: torch.Tensor, target: torch.Tensor
) -> kernels.Finite:
    """Write a span into a tensor that is not contiguous, through scratch memory.

    It holds at most HOST_JOB elements, and of a tensor of more than two dimensions one slice along
    the first, such as one expert.
    """
    most = min(HOST_JOB, target[0].numel() if target.dim() > 2 else HOST_JOB)
    finite = []
    start = span.start
    for part in torch.split(theta, most):
        scratch = torch.empty_like(part, dtype=target.dtype, device=target.device)
        finite.append(_write(variant, replace(span, start=start), part, scratch))
        stop = start + part.numel()
        boxes = list(_boxes(target, start, stop))
        sizes = [box.numel() for box in boxes]
        for box, values in zip(boxes, torch.split(scratch, sizes), strict=True):
            _copy(values.view(box.shape), box)
        start = stop
    flags = [each for each in finite if isinstance(each, torch.Tensor)]
    return torch.stack(flags).all() if flags else all(finite)


def _copy(values: torch.Tensor, box: torch.Tensor) -> None:
    """Copy into a strided view; on a CPU few rows at a time.

    In transposed memory the neighbours in a row lie in different cache lines. With few rows at a
    time each line is filled while it is still in the cache, and the copy takes a fifth of the time.
    """
    if box.device.type != "cpu" or box.dim() < 2:
        box.copy_(values)
    elif box.dim() > 2:
        for one, other in zip(values, box, strict=True):
            _copy(one, other)
    else:
        parts = zip(torch.split(values, _FEW_ROWS), torch.split(box, _FEW_ROWS), strict=True)
        for few, rows in parts:
            rows.copy_(few)


def _boxes(tensor: torch.Tensor, start: int, stop: int) -> Iterator[torch.Tensor]:
    """Yield views of `tensor` that hold its row-major elements from `start` to `stop`, in order."""
    if tensor.dim() == 1:
        yield tensor[start:stop]
        return
    size = tensor[0].numel()
    first, last = -(-start // size), stop // size  # rows that are whole
    if first > last:  # within one row
        yield from _boxes(tensor[last], start - last * size, stop - last * size)
        return
    if start < first * size:
        yield from _boxes(tensor[first - 1], start - (first - 1) * size, size)
    if first < last:
        yield tensor[first:last]
    if last * size < stop:
        yield from _boxes(tensor[last], 0, stop - last * size)


def _write(
    variant: Variant, span: _Span, theta: torch.Tensor, target: torch.Tensor
) -> kernels.Finite:
    if isinstance(variant, Unperturbed):
        return torch.isfinite(target.copy_(theta)).all()
    t = span.noise_stream(variant.noise)
    if isinstance(variant, Candidate):
        moved = theta.clone()
        coefficients, seeds = list(variant.coefficients), list(variant.seeds)
        kernels.update(moved, coefficients, seeds, t, span.start)  # (2)
        return torch.isfinite(target.copy_(moved)).all()
    scale = variant.sign * float(np.float32(variant.sigma))
    here = target  # `perturb` writes on θ's device
    if target.device != theta.device:
        here = torch.empty_like(target, device=theta.device)
    finite = kernels.perturb(theta, scale, variant.seed, t, span.start, here)  # (1)
    if here is not target:
        target.copy_(here)
    return finite


def _batches(theta: Mapping[str, torch.Tensor], most: int) -> list[_Batch]:
    """Group small parameters in one job and split large ones: few jobs, and no long one."""
    batches: list[_Batch] = []
    room = 0
    for name, tensor in theta.items():
        flat = tensor.view(-1)
        starts = range(0, flat.numel(), most)
        spans = [_Span(name, flat[start : start + most], start) for start in starts]
        if flat.numel() > room or not batches:
            batches.append(_Batch([name], [[span] for span in spans] or [[]]))  # [[]]: empty
            room = max(0, most - flat.numel())
        else:
            batches[-1].names.append(name)
            batches[-1].jobs[-1].extend(spans)
            room -= flat.numel()
    return batches


def _on_host(finite: Sequence[kernels.Finite]) -> list[bool]:
    """Return the flags as booleans, read from a device together, because each read waits for it."""
    if tensors := [known for known in finite if isinstance(known, torch.Tensor)]:
        read: list[bool] = torch.stack(tensors).tolist()
        return read
    return [bool(known) for known in finite]


def _base_values(base: Checkpoint, span: _Span) -> torch.Tensor:
    """Return θ₀ of a span in the file's dtype; the file is mapped, so this takes no memory."""
    try:
        return span.of(base.read(span.name))
    except ModelError as error:
        raise ModelError(
            f"the base model, which weight_decay needs, cannot be read any more: {error}"
        ) from error
