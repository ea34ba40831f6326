"""What a person sees: a progress bar on a terminal, plain lines elsewhere, tables of completions.

Model output is text, never markup: rich would take `[/think]` for a tag of its own, and a terminal would obey
control characters, so the first is switched off and visible.py leaves out the second.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from estune.common.types import Prompt
from estune.common.visible import wrap_streams
from estune.config import ESConfig
from estune.errors import clean

if TYPE_CHECKING:
    from estune.workers.base import Status  # which brings torch with it


def set_log_level(config: ESConfig) -> None:
    """Pass on the lines of estune's loggers that are at least as severe as `log_level`."""
    logging.getLogger("estune").setLevel(config.log_level.upper())


class Screen:
    """Shows a run. `done` and `total` steps; on a terminal the bar moves with each member."""

    def __init__(self, config: ESConfig) -> None:
        set_log_level(config)
        self._config = config
        self._console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
        self._bar = self._console.is_terminal and not config.disable_tqdm
        self._progress: Progress | None = None

    def say(self, line: str) -> None:
        """A line of text."""
        self._console.print(self._text(line), soft_wrap=True)  # in a log, a line stays one

    def start(self, done: int) -> None:
        """Begin at step `done`."""
        self._from = done
        if self._bar:
            per_step = self._config.population_size
            self._progress = Progress(
                SpinnerColumn("dots" if self._console.encoding.startswith("utf") else "line"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=10 if self._config.workers == "local" else 4),
                TextColumn("{task.fields[reward]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("left", markup=False),
                console=self._console,
                speed_estimate_period=3600,
            )
            total = (self._config.max_steps - done) * per_step
            self._progress.add_task(
                f"step {done + 1}/{self._config.max_steps}", total=total, reward="starting"
            )
            self._progress.start()
            wrap_streams()  # rich has put its own in their place, to print above the bar

    def member(self, step: int, done: int, workers: "Status") -> None:
        """Of `step`'s members `done` are evaluated and scored. Of several workers it says how many are alive, and beside the
        members that are done, how many are under way: (7+2/30)."""
        if self._progress:
            several = workers.requested > 1
            before = (step - 1 - self._from) * self._config.population_size
            under_way = f"+{workers.in_flight}" if several else ""
            label = f"step {step}/{self._config.max_steps} ({done}{under_way}/{self._config.population_size})"
            label += f" {workers.alive}/{workers.requested} workers" if several else ""
            self._progress.update(
                self._progress.task_ids[0], completed=before + done, description=label
            )

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step is done."""
        summary = str(
            self._text(
                _summary(
                    metrics, short=self._progress is not None and self._config.workers != "local"
                )
            )
        )
        if self._progress:
            self._progress.update(self._progress.task_ids[0], reward=summary)
        elif step % self._config.logging_steps == 0 or step in (1, self._config.max_steps):
            self.say(
                f"step {step}/{self._config.max_steps}  {summary}  {metrics['step_time']:.1f} s"
            )

    def stop(self) -> None:
        """The bar, if there is one, stays as it is."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of an evaluation's main figures."""
        detail = ("eval_rewards/", "eval_completions/")
        shown = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, float) and not name.startswith(detail)
        }
        self.say(
            f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        )

    def samples(self, title: str, records: Sequence[Mapping[str, Any]]) -> None:
        """A table of the first records: prompt, completion, reward."""
        head = ("prompt", "completion", "reward")
        self._texts(title, head, [[record[name] for name in head] for record in records])

    def before_after(
        self,
        before: Sequence[Mapping[str, Any]],
        after: Sequence[Mapping[str, Any]],
        first: Mapping[str, Any],
        last: Mapping[str, Any],
    ) -> None:
        """HeldOut-out answers and figures, those of the base model beside those of the tuned one."""
        pairs = list(zip(before, after, strict=False))
        self._texts(
            "held out",
            ("prompt", "before", "after"),
            [[b["prompt"], b["completion"], a["completion"]] for b, a in pairs],
        )
        both = [
            n
            for n, v in last.items()
            if n.startswith("eval_")
            and isinstance(v, (int, float))
            and n in first
            and n != "eval_runtime"
        ]
        figures = [
            (name, f"{first[name]:.4g}", f"{last[name]:.4g}")
            for name in both
            if first[name] is not None
        ]
        self.table(f"{len(pairs)} held-out prompts", ("metric", "before", "after"), figures)

    def _texts(self, title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        count = self._config.num_completions_to_print
        if count and rows:
            table = Table(title=self._text(title), show_lines=True)
            for column in head:
                table.add_column(self._text(column), overflow="fold")
            for row in rows[:count]:
                table.add_row(*(self._text(_cell(value)) for value in row))
            self._console.print(table)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table of figures."""
        table = Table(title=self._text(title))
        for index, column in enumerate(head):
            table.add_column(
                self._text(column), justify="left" if index == 0 else "right", overflow="fold"
            )
        for row in rows:
            table.add_row(*map(self._text, row))
        self._console.print(table)

    def _text(self, text: str) -> Text:
        """`text` as it may be shown here: what the stream cannot write becomes a question mark."""
        encoding = self._console.encoding
        return Text(clean(text).encode(encoding, "replace").decode(encoding))


def quieten_libraries() -> None:
    """No progress bars of transformers' own beside the run's."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def prompt_text(prompt: Prompt) -> str:
    """What to show of a prompt: the text, the token ids, or the last message."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    return str(last["content"]) if isinstance(last, dict) else str(prompt)


def _summary(metrics: Mapping[str, Any], *, short: bool) -> str:
    if metrics["reward"] is None:
        return "no member got a reward"
    speed = metrics["es/tokens_per_second"]
    best = "" if short else f", best {metrics['es/reward_best']:.3g}"
    moved = metrics.get("es/center_reward")
    centre = (
        "" if moved is None else f", centre {moved:.3g}"
    )  # learning_rate: auto; the others only know their members' rewards
    return f"reward {metrics['reward']:.3g} ± {metrics['reward_std']:.2g}{best}{centre} {speed:.0f} tok/s"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 300 else f"{text[:299]}…"
