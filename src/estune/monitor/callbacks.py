"""Call the user's `TrainerCallback`s at the same moments as transformers and TRL do."""

from collections.abc import Sequence
from typing import Any

from estune.config import ESConfig


class Callbacks:
    """Calls each callback with the config as `args`, a `TrainerState` and a `TrainerControl`.

    Reward functions get the same `state`, as `trainer_state`.
    """

    def __init__(self, config: ESConfig, callbacks: Sequence[Any]) -> None:
        from transformers import TrainerControl, TrainerState

        self.state = TrainerState(max_steps=config.max_steps)
        self._config = config
        self._control = TrainerControl()
        self._callbacks = [
            callback() if isinstance(callback, type) else callback for callback in callbacks
        ]

    def begin_step(self, step: int) -> None:
        self.state.global_step = step - 1
        self.call("on_step_begin")

    def end_step(self, step: int) -> None:
        self.state.global_step = step
        self.call("on_step_end")

    @property
    def stopping(self) -> bool:
        """Whether a callback has asked to end the training."""
        return bool(self._control.should_training_stop)

    @property
    def listening(self) -> bool:
        """Whether a callback overrides on_log, in which it may ask to end the training."""
        from transformers import TrainerCallback

        inherited = TrainerCallback.on_log
        return any(getattr(type(one), "on_log", None) is not inherited for one in self._callbacks)

    def call(self, event: str, **details: Any) -> None:
        """Call the method `event`, such as on_step_end, of every callback.

        Before on_train_begin, an earlier request to stop is cleared.
        """
        if event == "on_train_begin":
            self._control.should_training_stop = False
        for callback in self._callbacks:
            handle = getattr(callback, event)
            control = handle(self._config, self.state, self._control, **details)
            self._control = control or self._control
