"""Send metrics to tensorboard, wandb, trackio, mlflow and others, through accelerate."""

import logging
from pathlib import Path
from typing import Any

from estune.common.guard import guarded, reason
from estune.config import ESConfig
from estune.errors import ConfigError

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers in `report_to`. One that fails during the run is closed with a warning."""

    def __init__(self, config: ESConfig) -> None:
        self._config = config
        self._trackers: dict[str, Any] = {}

    def start(self) -> None:
        """Start the trackers.

        Raises:
            ConfigError: a tracker does not start, for example because it needs a login or a server.
        """
        values = {
            name: value
            for name, value in vars(self._config).items()
            if isinstance(value, (int, float, str, bool))
        }
        for name in dict.fromkeys(self._config.report_to or []):
            if name == "none":
                continue
            advice = f"fix that, or leave {name} out"
            with guarded(ConfigError, f"report_to: {name} does not start", advice):
                self._trackers[name] = _started(name, self._config)
                self._trackers[name].store_init_configuration(values)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send one step's metrics to all trackers."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(metrics, step=step)
            except Exception as error:
                logger.warning(
                    "report_to: %s failed (%s); all metrics are in metrics.jsonl",
                    name,
                    reason(error),
                )
                self._end(name)

    def close(self) -> None:
        """Flush and close the trackers."""
        for name in list(self._trackers):
            self._end(name)

    def _end(self, name: str) -> None:
        try:
            self._trackers.pop(name).finish()
        except Exception as error:
            logger.warning("report_to: %s failed to close (%s)", name, reason(error))


def check_trackers(names: list[str] | None) -> None:
    """Raise ConfigError for a tracker that is unknown or whose package is missing."""
    with guarded(ConfigError, "report_to: accelerate, which provides the trackers, cannot be used"):
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
        known = {str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS}
    for name in names or []:
        if name == "none" or name in available:
            continue
        if name in known:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}")
        raise ConfigError(
            f"report_to: unknown tracker {name!r}; choose from {', '.join(sorted(known))}"
        )


def _started(name: str, config: ESConfig) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # creates accelerate's global state, without which trackers do not start
    folder = Path(config.output_dir)
    run = config.run_name or folder.resolve().name
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(run, str(folder / "logs")) if kind.requires_logging_directory else kind(run)
    tracker.start()
    return tracker
