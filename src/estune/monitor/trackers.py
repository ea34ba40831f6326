"""Metrics to tensorboard, wandb, trackio, mlflow and others, through accelerate's trackers."""

import logging
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.config import ESConfig
from estune.errors import ConfigError

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers that `report_to` names. What they cannot do must not cost a run: that is one line."""

    def __init__(self, config: ESConfig) -> None:
        self._config = config
        self._trackers: dict[str, Any] = {}

    def start(self) -> None:
        """Start them all, which `check_trackers` found to be there.

        Raises:
            ConfigError: one does not start, for want of a login or a server, say.
        """
        values = {
            name: value
            for name, value in vars(self._config).items()
            if isinstance(value, (int, float, str, bool))
        }
        for name in dict.fromkeys(self._config.report_to or []):
            if name == "none":
                continue
            try:
                self._trackers[name] = _started(name, self._config)
                self._trackers[name].store_init_configuration(values)
            except Exception as error:  # each library has kinds of its own
                raise ConfigError(
                    f"report_to: {name} does not start ({_reason(error)}); mend that, or leave it out"
                ) from None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send one step's metrics."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(metrics, step=step)
            except Exception as error:
                logger.warning(
                    "report_to: %s takes no more metrics (%s); they are all in metrics.jsonl",
                    name,
                    _reason(error),
                )
                self._end(name)

    def close(self) -> None:
        """Flush and end."""
        for name in list(self._trackers):
            self._end(name)

    def _end(self, name: str) -> None:
        try:
            self._trackers.pop(name).finish()
        except Exception as error:
            logger.warning("report_to: %s does not end well (%s)", name, _reason(error))


def check_trackers(names: list[str] | None) -> None:
    """Raise ConfigError for a tracker that is unknown or whose package is missing."""
    with guarded(ConfigError, "report_to: accelerate, whose trackers these are, cannot be used"):
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
        known = {str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS}
    for name in names or []:
        if name == "none" or name in available:
            continue
        if name in known:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}")
        raise ConfigError(
            f"report_to: {name!r} is no tracker; there are {', '.join(sorted(known))}"
        )


def _started(name: str, config: ESConfig) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it which process is the main one
    folder = Path(config.output_dir)
    run = config.run_name or folder.resolve().name
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(run, str(folder / "logs")) if kind.requires_logging_directory else kind(run)
    tracker.start()
    return tracker


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
