"""Is this the run that the folder holds? What may differ on resume is listed; all else would change θ in silence.

Then θ is brought to the journal's last step, and checkpoints that are not what the journal says are written again.
"""

import dataclasses
import secrets
from collections.abc import Callable
from typing import Any

from estune.config import MAY_CHANGE_ON_RESUME, ESConfig, RunConfig, spans_max_steps
from estune.errors import ConfigError, JournalError
from estune.run.data_fingerprint import Rows, recorded_or_new
from estune.run.folder import RunFolder
from estune.run.milestones import best_step, trainer_state
from estune.run.model import Model
from estune.theta.identity import recorded
from estune.theta.journal import FORMAT, Header, Journal


def header(config: ESConfig, model: Model, rewards: list[str], data: str) -> Header:
    """The journal's first line for a run; `data` is the fingerprint of the training rows."""
    settings = without_tokens(vars(config)) | {"reward_functions": rewards, "train_data": data}
    return Header(FORMAT, model.name, model.theta.digest(), settings, run=secrets.token_hex(16))


def as_recorded(now: Header, before: Header, rows: Rows) -> Header:
    """`now` with the fingerprint that an earlier version of estune gave to the same `rows`, if `before` has that."""
    data = recorded_or_new(before.config.get("train_data"), rows, now.config["train_data"])
    return dataclasses.replace(now, config=now.config | {"train_data": data})


def check_resumable(journal: Journal, now: Header, config: ESConfig) -> None:
    """Compare what a run was started with and what it is to be resumed with; a setting that it knew nothing of had its default.

    Raises:
        ConfigError: something differs that may not.
        JournalError: a line lacks what a resume needs and a replay does not.
    """
    for step in journal.steps:
        if not isinstance(step.notes.get("metrics"), dict):
            raise JournalError(
                f"{journal.path}: line {step.step + 1} lacks its notes of metrics, from which a resume goes on"
            )
    before = journal.header
    defaults = recorded({field.name: field.default for field in dataclasses.fields(RunConfig)})
    began = defaults | recorded(before.config)
    given = defaults | recorded(now.config)
    for name in sorted(given.keys() - {"fitness"}):  # pass_k says the same
        had, has = began.get(name), given[name]
        if name == "train_data" and had != has:
            raise ConfigError(
                f"train_data: the rows differ from those that the run in {journal.path.parent} was started with "
                f"(fingerprint {had}, now {has}); give the same data again, or choose another output_dir. "
                "Earlier versions read numbers in CSV files and dates in JSON otherwise: finish such runs with them"
            )
        if name not in MAY_CHANGE_ON_RESUME and had != has:
            raise ConfigError(
                f"{name}: the run in {journal.path.parent} has {had!r}, not {has!r}; give the same again, or choose another output_dir"
            )
    schedule, had = spans_max_steps(config), before.config.get("max_steps")
    if schedule and had != config.max_steps:
        raise ConfigError(
            f"max_steps: {schedule} spans the {had} steps of the run in {journal.path.parent}, so they cannot be {config.max_steps}; "
            "give the same again, or choose another output_dir"
        )
    if before.digest != now.digest:
        raise ConfigError(
            f"model: {now.model} does not have the weights that the run in {journal.path.parent} began with"
        )
    if journal.last > now.config["max_steps"]:
        raise ConfigError(
            f"max_steps: the run in {journal.path.parent} has {journal.last} steps already; give at least that many"
        )


def restore(
    folder: RunFolder, model: Model, journal: Journal, config: ESConfig, say: Callable[[str], None]
) -> None:
    """Bring θ to the journal's last step; write the newest and the best checkpoint again unless they are what the journal says.

    Raises:
        JournalError: a line of metrics that decides the best checkpoint is damaged, or θ is not what the journal says.
    """
    folder.metrics.repair(journal, config, folder.evaluated)
    logged = {record["step"]: record for record in folder.metrics.read()}
    for step in folder.unverified(best_step(config, logged, journal.last)):
        folder.restore_near(model, step)
        for _ in journal.replay(model.theta, step):
            pass
        folder.save_checkpoint(step, model, trainer_state(config, logged, step))
    folder.restore_near(model, journal.last)
    say(f"resuming {folder.path} after step {journal.last}, from θ of step {model.theta.version}")
    for step in journal.replay(model.theta, journal.last):
        say(f"replayed step {step} of {journal.last}")


def without_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that may be written down: access tokens inside nested ones are left out."""
    return {
        name: without_tokens(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if not (name.endswith("token") and isinstance(value, str))
    }
