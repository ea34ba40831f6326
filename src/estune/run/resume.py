"""Check that a run may be resumed with these settings and data, then restore its θ.

Some settings may change on resume (config.MAY_CHANGE_ON_RESUME). A change of any other setting is
refused, because it would change θ.
"""

import dataclasses
import secrets
from collections.abc import Callable
from typing import Any

from estune.config import MAY_CHANGE_ON_RESUME, ESConfig, RunConfig, depends_on_max_steps
from estune.errors import ConfigError, JournalError
from estune.run.data_fingerprint import Rows, recorded_or_new
from estune.run.folder import RunFolder
from estune.run.milestones import best_step, trainer_state
from estune.run.model import Model
from estune.theta.identity import recorded
from estune.theta.journal import FORMAT, Header, Journal


def header(config: ESConfig, model: Model, rewards: list[str], data: str) -> Header:
    """Return the journal's first line; `data` is the fingerprint of the training rows."""
    settings = without_tokens(vars(config)) | {"reward_functions": rewards, "train_data": data}
    return Header(FORMAT, model.name, model.theta.digest(), settings, run=secrets.token_hex(16))


def as_recorded(now: Header, before: Header, rows: Rows) -> Header:
    """Return `now`, with the recorded fingerprint if an earlier version made it of these rows."""
    data = recorded_or_new(before.config.get("train_data"), rows, now.config["train_data"])
    return dataclasses.replace(now, config=now.config | {"train_data": data})


def check_resumable(journal: Journal, now: Header, config: ESConfig) -> None:
    """Compare the settings, data and weights of `now` with those that the run began with.

    If the journal does not have a setting, the run used its default.

    Raises:
        ConfigError: something differs that may not change.
        JournalError: a line lacks metrics, which a resume needs, although a replay does not.
    """
    for step in journal.steps:
        if not isinstance(step.notes.get("metrics"), dict):
            raise JournalError(
                f"{journal.path}: line {step.step + 1} has no metrics in its notes; "
                "a resume needs them"
            )
    before = journal.header
    run = f"the run in {journal.path.parent}"
    _check_settings(before.config, now.config, run)
    began, schedule = before.config.get("max_steps"), depends_on_max_steps(config)
    if schedule and began != config.max_steps:
        raise ConfigError(
            f"max_steps: cannot change from {began} to {config.max_steps} in {run}, because "
            f"{schedule} depends on it; give {began} again, or choose another output_dir"
        )
    if before.digest != now.digest:
        raise ConfigError(f"model: {now.model} does not have the weights with which {run} began")
    if journal.last > now.config["max_steps"]:
        raise ConfigError(
            f"max_steps: {run} has {journal.last} steps already; give at least that many"
        )


def _check_settings(before: dict[str, Any], now: dict[str, Any], run: str) -> None:
    defaults = recorded({field.name: field.default for field in dataclasses.fields(RunConfig)})
    before = defaults | recorded(before)
    now = defaults | recorded(now)
    # `recorded` adds the former setting `fitness`, which follows from pass_k; errors name pass_k.
    for name in sorted(now.keys() - MAY_CHANGE_ON_RESUME - {"fitness"}):
        old, new = before.get(name), now[name]
        if old == new:
            continue
        if name == "train_data":
            raise ConfigError(
                f"train_data: the rows differ from those that {run} began with (fingerprint {old}, "
                f"now {new}); give the same data again, or choose another output_dir. Earlier "
                "versions read numbers in CSV files and dates in JSON differently: finish their "
                "runs with them"
            )
        raise ConfigError(
            f"{name}: {run} began with {old!r}, not {new!r}; "
            "give the same again, or choose another output_dir"
        )


def restore(
    folder: RunFolder, model: Model, journal: Journal, config: ESConfig, say: Callable[[str], None]
) -> None:
    """Bring θ to the journal's last step; rewrite the newest and the best checkpoint if damaged.

    Raises:
        JournalError: a line of metrics that decides the best checkpoint is damaged, or θ does not
            match the journal's digest.
    """
    folder.metrics.repair(journal, config, folder.evaluated)
    logged = {record["step"]: record for record in folder.metrics.read()}
    for step in folder.unverified(best_step(config, logged, journal.last)):
        folder.restore_up_to(step, model)
        for _ in journal.replay(model.theta, step):
            pass
        folder.save_checkpoint(step, model, trainer_state(config, logged, step))
    folder.restore_up_to(journal.last, model)
    say(f"resuming {folder.path} after step {journal.last}, from θ of step {model.theta.version}")
    for step in journal.replay(model.theta, journal.last):
        say(f"replayed step {step} of {journal.last}")


def without_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without access tokens; those in nested mappings are left out too."""
    return {
        name: without_tokens(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if not (name.endswith("token") and isinstance(value, str))
    }
