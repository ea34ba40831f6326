"""The files in the folder of a run.

journal.jsonl     the record of the run (theta/journal.py)
metrics.jsonl     one line per step, with TRL's names (metrics_file.py)
checkpoint-K/     θ with the base checkpoint's dtypes and names: transformers and vLLM load it
theta/            θ in fp32 at the last save; a resume replays the journal's last steps from it
completions/      the completions of evaluations
profile-K.json    with `profile`: a trace from step K on (monitor/timeline.py)
reward_error.txt  the first reward that failed, with its traceback
config.yaml, README.md

Only one process at a time may use the folder. Its files are not trusted: a checkpoint or snapshot
is used only if its digests match the journal and its content.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from estune.common.anchor import Anchor
from estune.common.durable import locked, remove_folder, sync, write_text
from estune.common.visible import one_line
from estune.config import ESConfig
from estune.errors import ConfigError, JournalError
from estune.run.metrics_file import MetricsFile
from estune.run.model import Model
from estune.theta.identity import Identity, fault, run_digest
from estune.theta.journal import Header, Journal, Step, exists
from estune.theta.theta import snapshot_identity

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths and files of one run under `output_dir`."""

    def __init__(self, config: ESConfig) -> None:
        self.path = Path(config.output_dir)
        self.metrics = MetricsFile(self.path / "metrics.jsonl")
        self._config = config
        self._anchor: Anchor | None = None
        self._journal: Journal | None = None
        self._models: set[Path] = set()  # folders that models were saved to

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; later writes fail if it is renamed or replaced.

        Raises:
            ConfigError: another process has locked it.
        """
        with locked(self.path, "output_dir"):
            self._anchor = Anchor(self.path)
            self._journal = None
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Check before a write, and again if it fails, that the folder is still this run's.

        Raises:
            LostFolderError: the folder is no longer this run's.
        """
        self.check_own()
        try:
            yield
        except OSError:
            self.check_own()
            raise

    def check_own(self) -> None:
        """Raise LostFolderError if the folder or its journal is no longer this run's."""
        if self._anchor:
            self._anchor.check()
        if self._journal:
            self._journal.check_own()

    def begin(self, header: Header) -> Journal:
        """Start the run's journal."""
        self._journal = Journal.create(self.path, header)
        return self._journal

    def reopen(self) -> Journal:
        """Open the existing journal to continue it. Raises JournalError if it is damaged."""
        self._journal = Journal.open(self.path, repair=True)
        return self._journal

    def check_fresh(self, base: Path) -> None:
        """Check that a new run may begin in the folder.

        Raises:
            ConfigError: it holds a run, the base model, or files that a run would replace.
        """
        where = f"output_dir: {self.path}"
        if exists(self.path):
            raise ConfigError(
                f"{where} holds a run already; "
                "add --resume_from_checkpoint true to continue it, or choose another"
            )
        if existing := self.checkpoints():
            raise ConfigError(
                f"{where} holds checkpoint-{existing[-1]}, but no journal of its run; "
                "move it away, or choose another"
            )
        if other := self._in_the_way():
            raise ConfigError(
                f"{where} holds {other}, which a run would replace; move it away, or choose another"
            )
        if self.path.resolve() == base:
            raise ConfigError(f"{where} is the folder of the base model; choose another")

    def model_folder(self, wanted: str | None) -> Path:
        """Return the folder that `save_model` writes to: `wanted`, or else `final`.

        The folder of the run itself, which TRL's scripts give, also means `final`.

        Raises:
            ConfigError: `wanted` holds something that `save_model` did not write.
        """
        final = self.path / "final"
        target = Path(wanted) if wanted else final
        if target.resolve() == self.path.resolve():
            target = final
        may_replace = target.resolve() in self._models | {final.resolve()}
        if not may_replace and _holds_something(target):
            raise ConfigError(f"output_dir: {target} exists already; give save_model a new folder")
        self._models.add(target.resolve())
        return target

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[int]:
        """Return the steps of the existing checkpoints, ascending."""
        return _numbered(self.path, "checkpoint-", "")

    def append(self, step: Step) -> None:
        """Add a step to the journal; it is on disk when this returns."""
        assert self._journal is not None
        with self.writing():
            self._journal.append(step)

    def log(self, record: dict[str, Any]) -> None:
        """Add a step's line of metrics."""
        with self.writing():
            self.metrics.append(record)

    def save(self, step: int, model: Model, state: dict[str, Any], best: int | None) -> None:
        """Write the snapshot and the checkpoint of `step`, then delete those no longer needed.

        A snapshot or checkpoint that already holds the current θ is not written again.
        """
        with self.writing():
            identity = self.identity(model)
            assert identity is not None
            if snapshot_identity(self._snapshot(step)) != identity:
                self._snapshot(step).parent.mkdir(exist_ok=True)
                model.theta.save(self._snapshot(step), identity)
            for other in self._snapshots():
                if other != step:
                    self._snapshot(other).unlink()
            self.save_checkpoint(step, model, state)
            self._delete_old_checkpoints(step, best)

    def save_checkpoint(self, step: int, model: Model, state: dict[str, Any]) -> None:
        """Write θ as the checkpoint of `step`, unless an undamaged one exists."""

        def write_state(folder: Path) -> None:
            text = json.dumps(state, indent=2, sort_keys=True)
            (folder / "trainer_state.json").write_text(text + "\n")

        identity, target = self.identity(model), self.checkpoint(step)
        if target.exists():
            wrong = fault(target, identity)
            if wrong is None:
                return
            logger.warning(
                "%s differs from the journal's step %d (%s); it is written again",
                target,
                step,
                wrong,
            )
        model.write(target, identity, write_state)

    def identity(self, model: Model) -> Identity | None:
        """Return the run and the step to which the model's θ belongs; None before a run begins."""
        if self._journal is None:
            return None
        version = model.theta.version
        known = self._journal.digest(version) if version <= self._journal.last else None
        return Identity(run_digest(self._journal.header), version, known or model.theta.digest())

    def unverified(self, best: int | None) -> list[int]:
        """Return the steps of the newest and the best checkpoint that differ from the journal."""
        assert self._journal is not None
        existing = self.checkpoints()
        within = [step for step in existing if step <= self._journal.last]
        if len(within) < len(existing):
            logger.warning(
                "%s belongs to a step that the journal does not have; it is checked when the run "
                "reaches that step",
                self.checkpoint(existing[-1]),
            )
        wanted = {*within[-1:], *(step for step in within if step == best)}
        return sorted(step for step in wanted if not self._is_as_recorded(step, self._journal))

    def _is_as_recorded(self, step: int, journal: Journal) -> bool:
        digest = journal.digest(step)
        if digest is None:
            return False
        identity = Identity(run_digest(journal.header), step, digest)
        return fault(self.checkpoint(step), identity) is None

    def needs(self, model: Model) -> int:
        """Return how many more bytes of disk the run needs at most.

        There are two snapshots for a moment, because the old one is deleted after the new one is
        written.
        """
        config = self._config
        most = math.ceil(config.max_steps / config.save_steps)
        if config.save_total_limit:  # besides these, the best and the one that is being written
            most = min(most, config.save_total_limit + 2)
        new = max(1, most - len(self.checkpoints()))
        return new * model.saved_bytes() + 2 * model.theta_bytes()

    def restore_up_to(self, last: int, model: Model) -> None:
        """Bring θ to the latest state available that is not after step `last`.

        That is a snapshot whose digest the journal has, θ as it is now, or the base model. Damaged
        snapshots are deleted.
        """
        assert self._journal is not None
        now = model.theta.version
        for step in reversed([step for step in self._snapshots() if step <= last]):
            if step <= now <= last:
                return
            if self._journal.digest(step) is None:
                continue
            if self._restored(step, model, self._journal):
                return
            now = -1  # the damaged snapshot has overwritten θ
        if not 0 <= now <= last:
            model.theta.reset(model.checkpoint)

    def _restored(self, step: int, model: Model, journal: Journal) -> bool:
        """Read θ from the snapshot of `step`; if that is damaged, delete it and return False."""
        try:
            model.theta.restore(self._snapshot(step))
            journal.check(model.theta)
        except JournalError as error:
            logger.warning("%s; going back to an earlier state", error)
            self._snapshot(step).unlink()
            return False
        return True

    def write_completions(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the completions of an evaluation, one JSON object per line."""
        with self.writing():
            (self.path / "completions").mkdir(exist_ok=True)
            write_text(self._completions(step), json_lines(rows))

    def keep_reward_error(self, text: str) -> Path:
        """Write the report of a failed reward, if it is the run's first; return the file's path."""
        path = self.path / "reward_error.txt"
        with self.writing():
            if not path.exists():
                write_text(path, text)
        return path

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation followed `step`."""
        return self._completions(step).is_file()

    def completions(self, step: int) -> list[dict[str, Any]] | None:
        """Return the records of the evaluation after `step`; None if missing or damaged."""
        try:
            rows = [json.loads(line) for line in self._completions(step).read_bytes().splitlines()]
        except (OSError, ValueError, RecursionError):
            return None
        columns = {"prompt", "completion", "reward"}
        undamaged = all(isinstance(row, dict) and columns <= set(row) for row in rows)
        return rows if undamaged else None

    def _in_the_way(self) -> str | None:
        """Return a file with a name that runs use, unless this trainer wrote it."""
        if self.metrics.has_foreign_lines():
            return "metrics.jsonl"
        patterns = ["theta/step-*.safetensors", "completions/step-*.jsonl"]
        if self._config.profile:
            patterns.append("profile-*.json")
        if (self.path / "final").resolve() not in self._models:
            patterns.append("final/*")
        found = (path for pattern in patterns for path in self.path.glob(pattern))
        return next((str(path.relative_to(self.path)) for path in found), None)

    def _completions(self, step: int) -> Path:
        return self.path / "completions" / f"step-{step}.jsonl"

    def _snapshot(self, step: int) -> Path:
        return self.path / "theta" / f"step-{step}.safetensors"

    def _snapshots(self) -> list[int]:
        return _numbered(self.path / "theta", "step-", ".safetensors")

    def _delete_old_checkpoints(self, newest: int, best: int | None) -> None:
        for scratch in self.path.glob(".checkpoint-*.tmp"):
            shutil.rmtree(scratch)  # left by a kill
        limit = self._config.save_total_limit
        if limit is None:
            return
        for step in [step for step in self.checkpoints() if step <= newest][:-limit]:
            if step != best:
                remove_folder(self.checkpoint(step))
        sync(self.path)


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Return `rows` as one JSON object per line.

    NaN and infinity become null, and other values that JSON cannot hold become text.
    """
    plain = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in plain)


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str), parse_constant=lambda word: None)
    except Exception:  # tuples as keys, an int of 5,000 digits, a __str__ that fails
        return one_line(value)


def _holds_something(path: Path) -> bool:
    """Whether `path` is a file, or a folder that is not empty."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _numbered(folder: Path, prefix: str, suffix: str) -> list[int]:
    """Return the numbers between prefix and suffix in the folder's file names, ascending."""
    names = [path.name for path in folder.glob(f"{prefix}*{suffix}")]
    middles = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
    return sorted(int(middle) for middle in middles if middle.isdecimal())
