"""The folder of a run: its journal, metrics, checkpoints and snapshots of θ.

journal.jsonl     the record of the run (theta/journal.py)
metrics.jsonl     one line per step, with TRL's names (metrics_file.py)
checkpoint-K/     θ with the base checkpoint's dtypes and names: transformers and vLLM load it
theta/            θ in fp32 at the last save; a resume replays the journal's last steps from it
completions/      the completions of evaluations
profile-K.json    with `profile`: a trace from step K on (monitor/timeline.py)
reward_error.txt  the first reward that failed, with its traceback
config.yaml, README.md

Only one process at a time may use it. What a run left there is data: a checkpoint or snapshot
counts only if it names the journal's θ and its content matches.
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
            self._anchor, self._journal = Anchor(self.path), None
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Check the folder around a write.

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
        """Return the existing journal, to continue it. Raises JournalError."""
        self._journal = Journal.open(self.path, repair=True)
        return self._journal

    def check_fresh(self, base: Path) -> None:
        """Refuse a folder that holds a run, the base model, or files that a run would replace.

        Raises:
            ConfigError: it does.
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
        """Return where `save_model` writes: `wanted`, which must be new or empty, or `final`.

        Raises:
            ConfigError: something else is there.
        """
        final = self.path / "final"
        target = Path(wanted) if wanted else final
        if target.resolve() == self.path.resolve():  # as TRL's scripts ask
            target = final
        ours = target.resolve() in self._models | {final.resolve()}
        if target.exists() and not ours and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"output_dir: {target} exists already; give save_model a new folder")
        self._models.add(target.resolve())
        return target

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[int]:
        """Return the steps of the existing checkpoints, ascending."""
        return _numbered(self.path, "checkpoint-", "")

    def append(self, step: Step) -> None:
        """Add a step to the journal, on disk when this returns."""
        assert self._journal is not None
        with self.writing():
            self._journal.append(step)

    def log(self, record: dict[str, Any]) -> None:
        """Add a step's line of metrics."""
        with self.writing():
            self.metrics.append(record)

    def save(self, step: int, model: Model, state: dict[str, Any], best: int | None) -> None:
        """Write the snapshot and the checkpoint of `step`, then delete those no longer kept.

        Either is left alone if it exists and holds θ as it is now.
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
            self._rotate(step, best)

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
                "%s is not what the journal says of step %d (%s); it is written again",
                target,
                step,
                wrong,
            )
        model.write(target, identity, write_state)

    def identity(self, model: Model) -> Identity | None:
        """Return which run and step the model's θ belongs to; None before the run has begun."""
        if self._journal is None:
            return None
        version = model.theta.version
        known = self._journal.digest(version) if version <= self._journal.last else None
        return Identity(run_digest(self._journal.header), version, known or model.theta.digest())

    def unverified(self, best: int | None) -> list[int]:
        """Return which of the newest and the best checkpoint differ from the journal, by step."""
        assert self._journal is not None
        existing = self.checkpoints()
        within = [step for step in existing if step <= self._journal.last]
        if len(within) < len(existing):
            logger.warning(
                "%s is of a step that the journal does not have; it is checked when the run "
                "reaches that step",
                self.checkpoint(existing[-1]),
            )
        wanted = {*within[-1:], *(step for step in within if step == best)}
        return sorted(step for step in wanted if not self._is_as_recorded(step, self._journal))

    def _is_as_recorded(self, step: int, journal: Journal) -> bool:
        digest = journal.digest(step)
        if digest is None:
            return False
        return (
            fault(self.checkpoint(step), Identity(run_digest(journal.header), step, digest)) is None
        )

    def needs(self, model: Model) -> int:
        """Return the bytes of disk that the run needs at most, beyond what it uses already.

        A snapshot is replaced after the new one is written, so there are two for a moment.
        """
        config = self._config
        saves = math.ceil(config.max_steps / config.save_steps)
        kept = min(saves, config.save_total_limit + 2) if config.save_total_limit else saves
        new = max(1, kept - len(self.checkpoints()))
        return new * model.saved_bytes() + 2 * model.theta_bytes()

    def restore_near(self, model: Model, until: int) -> None:
        """Bring θ to the newest state up to step `until` whose digest the journal has.

        That is a snapshot, θ as it is, or the base model. Damaged snapshots are deleted.
        """
        assert self._journal is not None
        here = model.theta.version
        for step in reversed([step for step in self._snapshots() if step <= until]):
            if step <= here <= until:
                return
            if self._journal.digest(step) is None:
                continue
            try:
                model.theta.restore(self._snapshot(step))
                return self._journal.check(model.theta)
            except JournalError as error:
                logger.warning("%s; going back to an earlier state", error)
                self._snapshot(step).unlink()
                here = -1
        if not 0 <= here <= until:
            model.theta.reset(model.checkpoint)

    def write_completions(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the completions of an evaluation, one JSON object per line."""
        with self.writing():
            (self.path / "completions").mkdir(exist_ok=True)
            write_text(self._completions(step), json_lines(rows))

    def keep_reward_error(self, text: str) -> Path:
        """Write the report of the run's first failed reward; return the file's path."""
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
        wanted = {"prompt", "completion", "reward"}
        whole = all(isinstance(row, dict) and wanted <= set(row) for row in rows)
        return rows if whole else None

    def _in_the_way(self) -> str | None:
        """Return a file with a name that runs use, unless this trainer wrote it."""
        if self.metrics.has_foreign_lines():
            return "metrics.jsonl"
        patterns = ["theta/step-*.safetensors", "completions/step-*.jsonl"]
        patterns += ["profile-*.json"] * self._config.profile
        patterns += ["final/*"] * ((self.path / "final").resolve() not in self._models)
        found = (path for pattern in patterns for path in self.path.glob(pattern))
        return next((str(path.relative_to(self.path)) for path in found), None)

    def _completions(self, step: int) -> Path:
        return self.path / "completions" / f"step-{step}.jsonl"

    def _snapshot(self, step: int) -> Path:
        return self.path / "theta" / f"step-{step}.safetensors"

    def _snapshots(self) -> list[int]:
        return _numbered(self.path / "theta", "step-", ".safetensors")

    def _rotate(self, newest: int, best: int | None) -> None:
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
    """Return one JSON object per line.

    NaN and infinity become null; a value that JSON cannot hold becomes its text.
    """
    plain = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in plain)


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str), parse_constant=lambda word: None)
    except Exception:  # tuples as keys, an int of 5,000 digits, a __str__ that fails
        return one_line(value)


def _numbered(folder: Path, prefix: str, suffix: str) -> list[int]:
    """Return the numbers between prefix and suffix in the folder's file names, ascending."""
    names = [path.name for path in folder.glob(f"{prefix}*{suffix}")]
    middles = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
    return sorted(int(middle) for middle in middles if middle.isdecimal())
