"""Report a run's steps on the screen, in metrics.jsonl, to trackers and to callbacks."""

from typing import Any

from estune.config import ESConfig
from estune.monitor.callbacks import Callbacks
from estune.monitor.console import Screen
from estune.monitor.metrics import lost_rewards
from estune.monitor.theta_evaluation import ThetaEvaluation
from estune.monitor.trackers import Trackers
from estune.run.folder import RunFolder
from estune.run.milestones import best_value, plateaued
from estune.run.step_evaluation import StepEvaluation


class RunLog:
    """Reports the metrics of each step, and keeps them.

    lines: step → its line in metrics.jsonl.
    """

    def __init__(
        self, config: ESConfig, folder: RunFolder, screen: Screen, callbacks: Callbacks
    ) -> None:
        self._config = config
        self._folder = folder
        self._screen = screen
        self._callbacks = callbacks
        self.trackers = Trackers(config)
        self.lines: dict[int, dict[str, Any]] = {}

    def read(self) -> None:
        """Load the lines of the folder's metrics.jsonl."""
        self.lines = {line["step"]: line for line in self._folder.metrics.read()}

    def write(self, step: int, metrics: dict[str, Any], held_out: ThetaEvaluation | None) -> None:
        """Write and show the metrics of `step`, and of an evaluation after it if there was one."""
        if metrics:
            self._screen.step(step, metrics)
        if held_out:
            metrics = metrics | held_out.eval_metrics
            self._show_held_out(step, held_out)
        # The step comes first in the line, and no metric may replace it.
        self.lines[step] = {"step": step} | metrics | {"step": step}
        self._folder.log(self.lines[step])
        if held_out or step % self._config.logging_steps == 0:
            numbers = {name: value for name, value in metrics.items() if value is not None}
            self.trackers.log(numbers, step)
            self._callbacks.state.log_history.append(self.lines[step])
            self._callbacks.call("on_log", logs=metrics)
        if held_out:
            self._callbacks.call("on_evaluate", metrics=metrics)
            # Set after on_evaluate: transformers' callbacks compare with the previous best there.
            self._callbacks.state.best_metric = best_value(self._config, self.lines, step)

    def show_members(self, step: int, evaluation: StepEvaluation) -> None:
        """Show the best member's completions, and which members or rewards failed."""
        if self.shows_completions(step):
            self._screen.samples(f"step {step}, best member", evaluation.best)
        scored = evaluation.results
        members = scored[: self._config.population_size]
        broken = sum(not member.finite for member in members)
        if broken:
            self._screen.say(
                f"step {step}: {broken} members computed NaN or infinity and are left out; "
                "try a smaller sigma"
            )
        if evaluation.lost:
            path = self._folder.keep_reward_error(f"step {step}: {evaluation.lost}\n")
            count = lost_rewards([one.scores for one in scored])
            self._screen.lost_rewards(step, count, evaluation.lost.summary, path)

    def show_result(self, step: int, loader: str) -> None:
        """Show the held-out completions of `step`, next to those from before training, if any.

        Args:
            loader: the class of transformers that loads the model.
        """
        before, after = self._folder.completions(0), self._folder.completions(step)
        if before and after and step:
            self._screen.before_after(before, after, self.lines.get(0, {}), self.lines[step])
        elif after:
            self._screen.samples(f"held out, step {step}", after)
        if step:
            checkpoint = self._folder.checkpoint(step)
            self._screen.say(f"done: {checkpoint} loads with {loader}.from_pretrained")

    def shows_completions(self, step: int) -> bool:
        return self._config.log_completions and step % self._config.logging_steps == 0

    def stops_early(self, step: int) -> bool:
        """Whether the run ends after `step`, although max_steps is not reached."""
        return self._callbacks.stopping or plateaued(self._config, self.lines, step)

    def _show_held_out(self, step: int, held_out: ThetaEvaluation) -> None:
        self._folder.write_completions(step, held_out.records)
        self._screen.evaluation(step, held_out.eval_metrics)
        if step < self._config.max_steps:  # `show_result` shows the last step's
            self._screen.samples(f"held out, step {step}", held_out.records)
