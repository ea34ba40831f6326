"""transformers' `TrainerCallback`s, called at the moments that TRL's users know."""

from collections.abc import Sequence
from typing import Any

from estune.config import ESConfig


class Callbacks:
    """Calls each callback with the run's config as `args`, and a transformers `TrainerState` and `TrainerControl`.

    `state` is also what reward functions get as `trainer_state`.
    """

    def __init__(self, config: ESConfig, callbacks: Sequence[Any]) -> None:
        from transformers import TrainerControl, TrainerState

        self.state = TrainerState(max_steps=config.max_steps)
        self._config = config
        self._control = TrainerControl()
        self._callbacks = [
            callback() if isinstance(callback, type) else callback for callback in callbacks
        ]

    @property
    def stopping(self) -> bool:
        """Whether a callback asked for the end of training."""
        return bool(self._control.should_training_stop)

    @property
    def listening(self) -> bool:
        """Whether one hears on_log, where it may ask for the end of training after the step was written down."""
        from transformers import TrainerCallback

        return any(
            getattr(type(callback), "on_log", None) is not TrainerCallback.on_log
            for callback in self._callbacks
        )

    def call(self, event: str, **details: Any) -> None:
        """Call `event`, such as on_step_end, on every callback; the beginning of training forgets an earlier request to stop."""
        if event == "on_train_begin":
            self._control.should_training_stop = False
        for callback in self._callbacks:
            self._control = (
                getattr(callback, event)(self._config, self.state, self._control, **details)
                or self._control
            )
