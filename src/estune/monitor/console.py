"""What a run prints: a progress bar on a terminal, lines elsewhere, and tables of completions.

rich would read `[/think]` in a completion as markup, so its markup is switched off. A terminal
would obey control characters, so they are removed.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    from estune.workers.base import Status  # imports torch

_LONGEST_CELL = 300  # characters
_DETAILS = ("eval_rewards/", "eval_completions/")  # metrics that are not in an evaluation's line


class Screen:
    """Prints lines and tables, and on a terminal a progress bar that moves with each member."""

    def __init__(self, config: ESConfig) -> None:
        set_log_level(config)
        self._config = config
        self._console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
        self._bar = self._console.is_terminal and not config.disable_tqdm
        self._progress: Progress | None = None
        self._done_before = 0  # steps that were done when the bar was started

    def say(self, line: str) -> None:
        """Print one line, however long."""
        self._console.print(self._text(line), soft_wrap=True)

    def start(self, done: int) -> None:
        """Show the bar of a run that has `done` steps."""
        self._done_before = done
        if not self._bar:
            return
        total = (self._config.max_steps - done) * self._config.population_size
        self._progress = self._new_progress()
        self._progress.add_task(
            f"step {done + 1}/{self._config.max_steps}", total=total, reward="starting"
        )
        self._progress.start()
        wrap_streams()  # rich has just replaced stdout and stderr with streams of its own

    def member(self, step: int, done: int, workers: "Status") -> None:
        """Move the bar to `done` scored members of `step`.

        With several workers, the bar also shows how many members are in flight and how many workers
        are alive: (7+2/30) 3/4 workers.
        """
        if self._progress is None:
            return
        size, steps = self._config.population_size, self._config.max_steps
        if workers.requested > 1:
            label = f"step {step}/{steps} ({done}+{workers.in_flight}/{size})"
            label += f" {workers.alive}/{workers.requested} workers"
        else:
            label = f"step {step}/{steps} ({done}/{size})"
        completed = (step - 1 - self._done_before) * size + done
        self._progress.update(self._progress.task_ids[0], completed=completed, description=label)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a finished step: on the bar, or as a line every logging_steps."""
        if self._progress is not None:
            short = self._config.workers != "local"
            summary = str(self._text(_summary(metrics, short=short)))
            self._progress.update(self._progress.task_ids[0], reward=summary)
        elif step % self._config.logging_steps == 0 or step in (1, self._config.max_steps):
            summary = _summary(metrics, short=False)
            self.say(
                f"step {step}/{self._config.max_steps}  {summary}  {metrics['step_time']:.1f} s"
            )

    def stop(self) -> None:
        """Stop the bar, if there is one, and leave it on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print the main metrics of an evaluation as one line."""
        shown = [
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if isinstance(value, float) and not name.startswith(_DETAILS)
        ]
        self.say(f"step {step}  " + "  ".join(shown))

    def lost_rewards(self, step: int, count: int, first: str, details: Path) -> None:
        """Print how many rewards were lost, why the first was, and the file with its details."""
        self.say(f"step {step}: {count} rewards were lost; first: {first} (see {details})")

    def samples(self, title: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Print a table of the first records: prompt, completion, reward."""
        head = ("prompt", "completion", "reward")
        self._texts(title, head, [[record[name] for name in head] for record in records])

    def before_after(
        self,
        before: Sequence[Mapping[str, Any]],
        after: Sequence[Mapping[str, Any]],
        first: Mapping[str, Any],
        last: Mapping[str, Any],
    ) -> None:
        """Print two tables of an evaluation before and after the training.

        Args:
            before, after: records of the held-out completions.
            first, last: metrics.
        """
        pairs = list(zip(before, after, strict=False))
        head = ("prompt", "before", "after")
        rows = [[b["prompt"], b["completion"], a["completion"]] for b, a in pairs]
        self._texts("held out", head, rows)
        metrics = [
            (name, f"{first[name]:.4g}", f"{value:.4g}")
            for name, value in last.items()
            if name.startswith("eval_")
            and name != "eval_runtime"
            and isinstance(value, (int, float))
            and first.get(name) is not None
        ]
        self.table(f"{len(pairs)} held-out prompts", ("metric", "before", "after"), metrics)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of numbers; all columns but the first are right-aligned."""
        table = Table(title=self._text(title))
        for index, column in enumerate(head):
            table.add_column(
                self._text(column), justify="left" if index == 0 else "right", overflow="fold"
            )
        for row in rows:
            table.add_row(*map(self._text, row))
        self._console.print(table)

    def _new_progress(self) -> Progress:
        utf = self._console.encoding.startswith("utf")
        return Progress(
            SpinnerColumn("dots" if utf else "line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10 if self._config.workers == "local" else 4),
            TextColumn("{task.fields[reward]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left", markup=False),
            console=self._console,
            speed_estimate_period=3600,
        )

    def _texts(self, title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table of prompts and completions: its first `num_completions_to_print` rows."""
        count = self._config.num_completions_to_print
        if not count or not rows:
            return
        table = Table(title=self._text(title), show_lines=True)
        for column in head:
            table.add_column(self._text(column), overflow="fold")
        for row in rows[:count]:
            table.add_row(*(self._text(_cell(value)) for value in row))
        self._console.print(table)

    def _text(self, text: str) -> Text:
        """Return `text` for rich; characters that the stream cannot encode are question marks."""
        encoding = self._console.encoding
        return Text(clean(text).encode(encoding, "replace").decode(encoding))


def set_log_level(config: ESConfig) -> None:
    """Let estune's loggers show lines of `log_level` and above."""
    logging.getLogger("estune").setLevel(config.log_level.upper())


def quieten_libraries() -> None:
    """Switch off the progress bars of transformers, which would disturb the run's own."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def prompt_text(prompt: Prompt) -> str:
    """Return what to show of a prompt: its text, its token ids, or its last message."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    if not isinstance(last, dict):
        return str(prompt)
    content = last["content"]
    return "".join(map(_part_text, content)) if isinstance(content, list) else str(content)


def _part_text(part: Any) -> str:
    """What to show of a part of a message: its text, or its kind in brackets."""
    fields = part if isinstance(part, Mapping) else {"text": part}
    return str(fields["text"]) if "text" in fields else f"[{fields.get('type', 'part')}] "


def _summary(metrics: Mapping[str, Any], *, short: bool) -> str:
    """Return the main metrics of a step in a few words."""
    if metrics["reward"] is None:
        return "no member got a reward"
    text = f"reward {metrics['reward']:.3g} ± {metrics['reward_std']:.2g}"
    if not short:
        text += f", best {metrics['es/reward_best']:.3g}"
    if metrics.get("es/center_reward") is not None:  # learning_rate: auto knows the reward of θ
        text += f", θ {metrics['es/center_reward']:.3g}"
    return f"{text} {metrics['es/tokens_per_second']:.0f} tok/s"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
