"""θ: the tuned parameters, kept once, exactly, in fp32, under the names of the checkpoint's files.

A member's weights are always written from θ and never undone by subtraction, so nothing drifts.
The arithmetic is in writer.py; it gives the same bits on every device and number of threads.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from estune.common.durable import replaced_file
from estune.common.resources import cores
from estune.common.types import ThetaUpdate, Variant
from estune.errors import EngineError, JournalError, ModelError
from estune.theta.checkpoint import Checkpoint
from estune.theta.identity import Identity
from estune.theta.shared_memory import Address, SharedTensors
from estune.theta.writer import HOST_JOB, Destination, Writer

_IDENTITY = "estune"  # a snapshot's metadata key
_PART = 1 << 24  # elements per message to another replica


class Theta:
    """θ by name, and the operations on it.

    `version` counts the updates that were applied. In shared memory (`load(share=True)`), other
    processes of this machine read the same θ (`attach`); only the process that made it updates it.

    Args:
        tensors: fp32, all on one device. On a device other than the CPU they are not shared.
        version: of `tensors`.
        threads: how many write at a time (default: one per core).
        shared: the memory that holds `tensors`, if it is shared.
        base: the base model's checkpoint; an update with weight decay reads θ₀ from it.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        version: int = 0,
        threads: int | None = None,
        shared: SharedTensors | None = None,
        base: Checkpoint | None = None,
    ) -> None:
        self.tensors = dict(tensors)
        self._base = base
        self._shared = shared
        # 2·version, and 1 more while θ is being written
        self._state = shared.state if shared else torch.zeros(1, dtype=torch.int64)
        self._device = next((one.device for one in self.tensors.values()), torch.device("cpu"))
        self.writer = Writer(self.tensors, self._device, threads or cores(), shared)
        if version:
            self._end_write(version)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        names: Iterable[str],
        *,
        device: str = "cpu",
        share: bool = False,
    ) -> "Theta":
        """Return θ₀: the checkpoint's values of `names`, widened to fp32.

        Args:
            share: keep θ in memory that other processes can attach to.

        Raises:
            ModelError: a weight is infinite or not a number.
        """
        shapes = {name: checkpoint.tensors[name].shape for name in names}
        shared = SharedTensors.create(shapes) if share else None
        if shared:
            tensors = shared.tensors
        else:
            tensors = {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
        loaded = cls(tensors, shared=shared, base=checkpoint)
        loaded.reset(checkpoint)
        return loaded

    @classmethod
    def attach(cls, address: Address, *, threads: int | None = None) -> "Theta":
        """Return the θ of another process on this machine, read-only.

        Raises:
            EngineError: there is no such θ on this machine.
        """
        shared = SharedTensors(address)
        return cls(shared.tensors, threads=threads, shared=shared)

    def part(self, names: Iterable[str]) -> "Theta":
        """Return the θ of some of the parameters, for reading: it shares memory and version."""
        tensors = {name: self.tensors[name] for name in names}
        part = Theta(tensors, threads=self.writer.threads, shared=self._shared)
        part._state = self._state
        return part

    @property
    def address(self) -> Address | None:
        """Where other processes of this machine attach, if θ is shared."""
        return self._shared.address if self._shared else None

    @property
    def on_device(self) -> bool:
        """Whether θ is on a device other than the CPU."""
        return self.writer.on_device

    @property
    def version(self) -> int:
        """The number of updates in θ.

        Raises:
            EngineError: the process that was writing θ ended before it was done.
        """
        state = int(self._state)
        if state % 2:
            raise EngineError(
                "θ was left half written; it must be rebuilt from a snapshot and the journal"
            )
        return state // 2

    def at(self, version: int) -> bool:
        """Whether θ is whole and has had that many updates."""
        return int(self._state) == 2 * version

    def reset(self, checkpoint: Checkpoint) -> None:
        """Set θ to θ₀, in place. Raises ModelError for a weight that is not finite."""
        self._begin_write()
        for name, stored in checkpoint.read_all(self.tensors):
            theta = self.tensors[name]
            theta.copy_(stored)
            if not bool(torch.isfinite(theta).all()):
                raise ModelError(
                    f"{checkpoint.folder}: {name} holds weights that are infinite or not a number"
                )
        self._end_write(0)

    def perturbed(
        self, variant: Variant, destination: Destination
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Write a variant's weights, and yield (name, tensor) as each parameter is ready.

        A candidate is bit-identical to θ after the same update.

        Args:
            destination: returns the tensor to fill for a name, in the engine's dtype. An engine
                in this process gives its own parameters, so nothing is copied, unless they are
                not contiguous; then each job passes through scratch memory.

        Raises:
            ModelError: a weight overflows its dtype, or the variant is of another version.
        """
        if variant.version != self.version:
            raise ModelError(
                f"a member of version {variant.version} cannot be written from θ at version "
                f"{self.version}"
            )
        yield from self.writer.write(variant, destination)

    def update(self, update: ThetaUpdate) -> None:
        """Apply an update to θ, in place. One that arrives twice is applied once.

        Raises:
            JournalError: the version is not θ's, seeds and coefficients differ in
                number, or the decay is not from 0 to 1.
            ModelError: the base model, which a decay needs, cannot be read.
        """
        if update.version == self.version - 1:
            return  # it is the one just applied
        if update.version != self.version:
            raise JournalError(
                f"an update from version {update.version} cannot be applied to θ at version "
                f"{self.version}"
            )
        coefficients, seeds = len(update.coefficients), len(update.seeds)
        if coefficients and coefficients != seeds:
            raise JournalError(f"an update has {coefficients} coefficients for {seeds} seeds")
        if not 0 <= update.decay <= 1:
            raise JournalError(f"an update decays by {update.decay}, which is not from 0 to 1")
        if update.decay and self._base is None:
            raise ModelError("an update that decays needs the base model, and this θ has none")
        self._begin_write()
        if coefficients:
            self.writer.update(update, self._base)
        self._end_write(update.version + 1)

    def digest(self) -> str:
        """Return BLAKE2b-128 over the parameters in sorted order, as 32 hexadecimal digits.

        Each contributes its name, a zero byte, and the BLAKE2b-128 of its values.
        """
        names = sorted(self.tensors)
        digests = self.writer.pool.map(lambda name: _digest(self.tensors[name]), names)
        whole = hashlib.blake2b(digest_size=16)
        for name, digest in zip(names, digests, strict=True):
            whole.update(name.encode() + b"\0" + digest)
        return whole.hexdigest()

    def root_mean_square(self) -> float:
        """Return the root mean square of all weights."""
        tensors = self.tensors.values()
        parts = [part for theta in tensors for part in torch.split(theta.view(-1), HOST_JOB)]
        squares = self.writer.pool.map(lambda part: float(part.double().square().sum()), parts)
        return math.sqrt(math.fsum(squares) / sum(theta.numel() for theta in tensors))

    def save(self, path: Path, identity: Identity | None = None) -> None:
        """Write θ in fp32 with its identity, durably."""
        identity = identity or Identity("", self.version, self.digest())
        # A single key: safetensors writes several in varying order, so the file's bytes would vary.
        metadata = {_IDENTITY: json.dumps(asdict(identity))}
        with replaced_file(path) as scratch:
            save_file(self.tensors, scratch, metadata=metadata)

    def restore(self, path: Path) -> None:
        """Read θ and its version from a file that `save` wrote.

        Raises:
            JournalError: the file is damaged or holds other parameters.
        """
        self._begin_write()
        try:
            with safe_open(path, "pt") as file:
                for name, theta in self.tensors.items():
                    stored = file.get_tensor(name)
                    if (stored.dtype, stored.shape) != (theta.dtype, theta.shape):
                        # copy_ would broadcast and convert
                        raise ValueError(f"{name} has another shape or dtype")
                    theta.copy_(stored)
                self._end_write(_version(file.metadata()))
        except Exception as error:  # safetensors raises several kinds
            raise JournalError(f"{path}: not a snapshot of this model's θ ({error})") from None

    def parts(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Yield θ in parts that fit into a message: (name, flat start, flat view)."""
        for name, theta in self.tensors.items():
            flat = theta.view(-1)
            for start in range(0, flat.numel(), _PART):
                yield name, start, flat[start : start + _PART]

    def put(self, name: str, start: int, values: torch.Tensor) -> None:
        """Take part of another replica's θ, from flat element `start` on.

        Call `finish_put` after the last part.
        """
        self._begin_write()
        self.tensors[name].view(-1)[start : start + values.numel()] = values

    def finish_put(self, version: int) -> None:
        """Mark θ as complete, at `version`."""
        self._end_write(version)

    def _begin_write(self) -> None:
        self._state |= 1

    def _end_write(self, version: int) -> None:
        if self._device.type != "cpu":  # the next reader may use another stream
            torch.accelerator.synchronize(self._device)
        self._state[0] = 2 * version


def snapshot_identity(path: Path) -> Identity | None:
    """Return which θ a snapshot holds, or None if it is damaged or does not record it."""
    try:
        with safe_open(path, "pt") as file:
            return Identity(**json.loads(file.metadata()[_IDENTITY]))
    except Exception:  # safetensors raises several kinds
        return None


def _version(metadata: Mapping[str, str]) -> int:
    """Return a snapshot's step; format 1 wrote it as `version`."""
    if _IDENTITY in metadata:
        return int(json.loads(metadata[_IDENTITY])["step"])
    return int(metadata["version"])


def _digest(theta: torch.Tensor) -> bytes:
    values = theta.cpu().numpy().astype("<f4", copy=False)
    return hashlib.blake2b(values.data, digest_size=16).digest()
