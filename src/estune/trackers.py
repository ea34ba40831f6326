"""Metrics to tensorboard, wandb, trackio, mlflow and others, through accelerate's trackers."""

from pathlib import Path
from typing import Any

from estune.config import ESConfig
from estune.errors import ConfigError


class Trackers:
    """The trackers that `report_to` names; none of them costs anything until a run starts.

    Raises:
        ConfigError: one is unknown, or its package is not installed.
    """

    def __init__(self, config: ESConfig) -> None:
        self._trackers: list[Any] = []
        names = [name for name in config.report_to or [] if name != "none"]
        if names:
            self._trackers = _started(names, config)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send one step's metrics."""
        for tracker in self._trackers:
            tracker.log(metrics, step=step)

    def close(self) -> None:
        """Flush and end."""
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: list[str] | None) -> None:
    """Raise ConfigError for a tracker that is unknown or whose package is missing."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    known = {str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS}
    for name in names or []:
        if name == "none" or name in available:
            continue
        if name in known:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}")
        raise ConfigError(f"report_to: {name!r} is no tracker; there are {', '.join(sorted(known))}")


def _started(names: list[str], config: ESConfig) -> list[Any]:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    check_trackers(names)
    PartialState()  # the trackers ask it which process is the main one
    folder = Path(config.output_dir)
    run = config.run_name or folder.resolve().name
    trackers = []
    for name in dict.fromkeys(names):
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind(run, str(folder / "logs")) if kind.requires_logging_directory else kind(run)
        tracker.start()
        tracker.store_init_configuration({k: v for k, v in vars(config).items() if isinstance(v, (int, float, str, bool))})
        trackers.append(tracker)
    return trackers
