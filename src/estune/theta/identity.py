"""Which θ a checkpoint holds, and whether its weights are still the ones that were written.

θ cannot be recovered from bf16 weights, so `estune.json` in the folder names the run, the step and
θ's digest, and has a digest of each file of weights. Opening a checkpoint compares the files'
digests; a resume also compares θ's with the journal. Snapshots of θ carry the same three facts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from estune.common.checksummed_lines import checksummed, verified
from estune.config import MAY_CHANGE_ON_RESUME, RunConfig
from estune.errors import JournalError, ModelError
from estune.theta.records import FILE, Header, read

NAME = "estune.json"
_CHUNK = 1 << 22
Stamp = tuple[str, int, int, int]  # a file's name, inode, size and time of change


@dataclass(frozen=True)
class Identity:
    """θ after `step` updates of a run, and its digest."""

    run: str
    step: int
    theta: str


def run_digest(header: Header) -> str:
    """Return a digest of θ₀ and of the settings that determine θ.

    Runs that must give the same θ share it.
    """
    defaults = recorded({field.name: field.default for field in dataclasses.fields(RunConfig)})
    config = recorded(json.loads(json.dumps(header.config)))  # tuples become lists, as in the file
    fixed = {
        name: value
        for name, value in config.items()
        if name not in MAY_CHANGE_ON_RESUME and value != defaults.get(name)
    }
    return hashlib.blake2b(
        json.dumps([header.digest, fixed], sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the first journals recorded them, so that runs of all versions compare.

    They had a setting `fitness`, which now follows from `pass_k`, and `sigma_scheduler_type` was
    "constant" without `sigma_end`.
    """
    found = dict(settings)
    found["fitness"] = "mean" if found.get("pass_k") is None else "pass_at_k"
    if found.get("sigma_end") is None:
        found["sigma_scheduler_type"] = "constant"
    return found


def seal(folder: Path, identity: Identity) -> None:
    """Write `estune.json`: which θ `folder` holds, and the digests of its files of weights."""
    (folder / NAME).write_text(
        checksummed(json.dumps(asdict(identity) | {"files": _digests(folder)})), encoding="utf-8"
    )


def fault(folder: Path, identity: Identity | None = None) -> str | None:
    """Return what is wrong with a sealed checkpoint, or None.

    The seal must be whole, the weights must be those that it names, and θ must be that of
    `identity`, if given.
    """
    record = _sealed(folder)
    if record is None:
        return f"{NAME} is missing or damaged"
    if identity is not None and record != asdict(identity) | {"files": record["files"]}:
        return f"it says that it is θ of step {record['step']} with digest {record['theta']}"
    return _changed(folder, record["files"])


def check_sealed(folder: Path) -> None:
    """Compare a checkpoint with its estune.json and the run's journal, if they exist.

    Raises:
        ModelError: it has other weights, or the journal has another θ for its step.
    """
    if (folder / NAME).is_file() and (wrong := _checked(folder, _stamps(folder))):
        raise ModelError(
            f"{folder}: it is not the checkpoint that was written there ({wrong}); resume its run "
            "or use estune replay to write it again, or delete "
            f"{folder / NAME} to use the weights as they are"
        )


@lru_cache(maxsize=64)
def _checked(folder: Path, stamps: tuple[Stamp, ...]) -> str | None:
    """Return what is wrong; cached until a file changes."""
    return fault(folder) or _disowned(folder)


def _disowned(folder: Path) -> str | None:
    """Return how the journal contradicts a sealed checkpoint; None if it does not."""
    path, record = folder.parent / FILE, _sealed(folder)
    try:
        journal = read(path, path.read_bytes())
    except (OSError, JournalError):
        return None
    if record is None or not 0 < record["step"] <= len(journal.steps):
        return None
    digest = journal.steps[record["step"] - 1].digest
    if record["run"] != run_digest(journal.header):
        return f"{path} is of another run"
    return (
        f"{path} has another θ for step {record['step']}"
        if digest not in (None, record["theta"])
        else None
    )


def _stamps(folder: Path) -> tuple[Stamp, ...]:
    beside = folder.parent / FILE
    paths = [*_weights(folder), folder / NAME, *([beside] if beside.is_file() else [])]
    stats = [(path.name, path.stat()) for path in paths]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _sealed(folder: Path) -> dict[str, Any] | None:
    try:
        record = verified((folder / NAME).read_bytes())
    except OSError:
        return None
    kinds = {"run": str, "step": int, "theta": str, "files": dict}
    right = (
        record is not None
        and record.keys() == kinds.keys()
        and all(type(record[name]) is kind for name, kind in kinds.items())
    )
    return record if right else None


def _changed(folder: Path, files: dict[str, str]) -> str | None:
    try:
        found = _digests(folder)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    wrong = sorted(name for name in {*found, *files} if found.get(name) != files.get(name))
    return f"{wrong[0]} is not the file that was written" if wrong else None


def _weights(folder: Path) -> list[Path]:
    """Return the files that hold weights, or say which file holds which."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")])


def _digests(folder: Path) -> dict[str, str]:
    paths = _weights(folder)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip((path.name for path in paths), pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()
