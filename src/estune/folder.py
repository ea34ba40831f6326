"""A run's folder: one process at a time, checkpoints that load anywhere, fp32 snapshots to resume from, metrics.

journal.jsonl     the record of the run (journal.py)
metrics.jsonl     one line a step, TRL's metric names (measured.py)
checkpoint-K/     θ in the base checkpoint's own dtypes and names: transformers and vLLM load it as it is
theta/            θ in fp32 at the last save, from which a resume replays the journal's last steps
completions/      what the evaluations answered
profile-K.json    with `profile`: what was done when, from step K on (timeline.py)
reward_error.txt  the first reward that was lost, with its traceback
config.yaml, README.md
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from estune.config import ESConfig
from estune.durable import remove_folder, sync, write_text
from estune.errors import ConfigError, JournalError
from estune.journal import Journal, exists
from estune.measured import Measured
from estune.model import Model

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths and files of one run under `output_dir`."""

    def __init__(self, config: ESConfig) -> None:
        self.path = Path(config.output_dir)
        self.measured = Measured(self.path / "metrics.jsonl")
        self._config = config
        self._models: set[Path] = set()  # folders that models were saved to

    def check_fresh(self, base: Path) -> None:
        """Refuse a folder that holds a run, the base model, or files that a run would replace.

        Raises:
            ConfigError: it does.
        """
        if exists(self.path):
            raise ConfigError(
                f"output_dir: {self.path} holds a run already; add --resume_from_checkpoint true to go on with it, or choose another"
            )
        if there := self.checkpoints():
            raise ConfigError(
                f"output_dir: {self.path} holds checkpoint-{there[-1]}, but no journal of its run; move it away, or choose another"
            )
        if other := self._in_the_way():
            raise ConfigError(f"output_dir: {self.path} holds {other}, which a run would replace; move it away, or choose another")
        if self.path.resolve() == base:
            raise ConfigError(f"output_dir: {self.path} is the folder of the base model; choose another")

    def model_folder(self, wanted: str | None) -> Path:
        """Return where `save_model` writes: `wanted`, which must be new or empty, or `final`.

        Raises:
            ConfigError: something else is there.
        """
        final = self.path / "final"
        target = Path(wanted) if wanted else final
        if target.resolve() == self.path.resolve():  # as scripts for TRL do: there it lies beside the logs
            target = final
        ours = target.resolve() in self._models or target.resolve() == final.resolve()
        if target.exists() and not ours and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"output_dir: {target} exists already; give save_model a new folder")
        self._models.add(target.resolve())
        return target

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        return _numbered(self.path, "checkpoint-", "")

    def save(self, step: int, model: Model, state: dict[str, Any], best: int | None) -> None:
        """Write what is missing of the snapshot and the checkpoint of `step`, then delete what is no longer kept."""

        def write_state(folder: Path) -> None:
            (folder / "trainer_state.json").write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")

        if not self._snapshot(step).is_file():
            self._snapshot(step).parent.mkdir(exist_ok=True)
            model.center.save(self._snapshot(step))
        if not self.checkpoint(step).is_dir():
            model.write(self.checkpoint(step), write_state)
        for older in _numbered(self.path / "theta", "step-", ".safetensors")[:-1]:
            self._snapshot(older).unlink()
        self._rotate(best)

    def needs(self, model: Model) -> int:
        """Bytes that the run will have on disk at once, beyond what is there: checkpoints, and two snapshots while one is replaced."""
        config = self._config
        saves = -(-config.max_steps // config.save_steps)
        kept = min(saves, config.save_total_limit + 2) if config.save_total_limit else saves
        return max(1, kept - len(self.checkpoints())) * model.saved_bytes() + 2 * model.theta_bytes()

    def restore(self, model: Model, journal: Journal) -> None:
        """Bring θ to the newest snapshot that the journal vouches for, else to the base; damaged ones are passed over."""
        for step in reversed(_numbered(self.path / "theta", "step-", ".safetensors")):
            if step > journal.last or journal.steps[step - 1].digest is None:
                continue
            try:
                model.center.restore(self._snapshot(step))
                return journal.check(model.center)
            except JournalError as error:
                logger.warning("%s; going back to an earlier state", error)
        model.center.reset(model.checkpoint)

    def write_completions(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Keep what an evaluation answered, one JSON a line."""
        (self.path / "completions").mkdir(exist_ok=True)
        write_text(self._completions(step), json_lines(rows))

    def keep_mishap(self, text: str) -> Path:
        """Keep what is said of the first lost reward of the run; returns the file's path."""
        path = self.path / "reward_error.txt"
        if not path.exists():
            write_text(path, text)
        return path

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation followed `step`."""
        return self._completions(step).is_file()

    def completions(self, step: int) -> list[dict[str, Any]] | None:
        """What the evaluation of `step` answered; None where there was none, or its file is damaged."""
        try:
            rows = [json.loads(line) for line in self._completions(step).read_bytes().splitlines()]
        except (OSError, ValueError):
            return None
        return rows if all(isinstance(row, dict) and {"prompt", "completion", "reward"} <= set(row) for row in rows) else None

    def _in_the_way(self) -> str | None:
        """Return what is there under a name that a run uses, if no run of this trainer left it."""
        if self.measured.foreign():
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

    def _rotate(self, best: int | None) -> None:
        for scratch in self.path.glob(".checkpoint-*.tmp"):
            shutil.rmtree(scratch)  # what a kill left
        limit = self._config.save_total_limit
        if limit is not None:
            for step in self.checkpoints()[:-limit]:
                if step != best:
                    remove_folder(self.checkpoint(step))
            sync(self.path)


def json_lines(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line; NaN, which JSON has not, becomes null."""
    plain = [json.loads(json.dumps(row, default=str), parse_constant=lambda word: None) for row in rows]
    return "".join(json.dumps(row) + "\n" for row in plain)


def _numbered(folder: Path, prefix: str, suffix: str) -> list[int]:
    names = [path.name for path in folder.glob(f"{prefix}*{suffix}")] if folder.is_dir() else []
    middles = [name[len(prefix) : len(name) - len(suffix)] for name in names]
    return sorted(int(middle) for middle in middles if middle.isdecimal())
