"""Score completions that a file holds; no model is needed.

  estune score --task countdown --completions answers.jsonl

Each line of the file is a JSON object with `completion` (text, or a list of messages) and the
task's columns, such as `numbers` and `target`. The output is one JSON number per line, in order.
"""

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from estune.cli.settings import refuse_unknown, unreadable
from estune.errors import ConfigError, DataError
from estune.tasks.data_files import decoded

SUMMARY = "score completions from a file"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", metavar="TASK", help="task whose reward scores them; estune tasks lists all"
    )
    parser.add_argument(
        "--reward_funcs",
        metavar="NAME",
        nargs="+",
        help="reward functions to use instead of a task's",
    )
    parser.add_argument(
        "--completions",
        metavar="FILE",
        required=True,
        help="JSONL file of completions with their columns; -: standard input",
    )


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    from estune.tasks import get_task
    from estune.tasks.reward_functions import resolve_rewards

    refuse_unknown(unknown, ["task", "reward_funcs", "completions"])
    if not options.task and not options.reward_funcs:
        raise ConfigError("task: give one (estune tasks lists them), or reward_funcs")
    with contextlib.redirect_stdout(sys.stderr):  # for what reward functions print
        functions = resolve_rewards(
            options.reward_funcs or list(get_task(options.task).reward_funcs)
        )
        rows = _rows(options.completions)
        rewards = _score(functions, rows, options.completions) if rows else []
    for reward in rewards:
        print(json.dumps(reward))
    return 0


def _score(functions: list[Any], rows: list[dict[str, Any]], where: str) -> list[float | None]:
    from estune.common.types import Completion
    from estune.rewards.marks import overran_line
    from estune.rewards.scoring import RewardFunctions

    rewards = RewardFunctions(functions)
    rewards.check([name for name in rows[0] if name != "prompt"])
    completions = [
        Completion(_text(row["completion"], where, number), [], False)
        for number, row in enumerate(rows, 1)
    ]
    scores = rewards.score(_opened(rows, where), completions)
    if scores.overran:
        print(overran_line(scores.overran), file=sys.stderr)
    return [None if math.isnan(reward) else float(reward) for reward in scores.total]


def _opened(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Return the rows with their images as PIL images; paths begin in the file's folder."""
    from estune.common.images import opened
    from estune.tasks.image_rows import with_image_columns

    base = Path(where).parent
    read = []
    for number, row in enumerate(rows, 1):
        try:
            read.append(with_image_columns(row, base))
        except DataError as error:
            raise DataError(f"{where}: row {number}: {error}") from None
    return opened(read)


def _rows(path: str) -> list[dict[str, Any]]:
    lines = enumerate(_file_text(path).split("\n"), 1)
    rows = [_row(path, number, line) for number, line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        if set(row) != set(rows[0]):
            here, first = (", ".join(sorted(columns)) for columns in (row, rows[0]))
            raise DataError(f"{path}: row {number} has the columns {here}, row 1 has {first}")
    return rows


def _file_text(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read().removeprefix("\ufeff")
        return decoded(Path(path).read_bytes(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(unreadable(path, error)) from None


def _row(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError too
        raise DataError(f"{path}: line {number} is not JSON ({error})") from None
    if not isinstance(row, dict) or "completion" not in row:
        raise DataError(
            f"{path}: line {number} must be a JSON object with 'completion' and the task's columns"
        )
    return row


def _text(completion: Any, path: str, number: int) -> str:
    """Return a completion's text, or that of its last message."""
    if isinstance(completion, str):
        return completion
    if (
        isinstance(completion, list)
        and completion
        and isinstance(completion[-1], dict)
        and "content" in completion[-1]
    ):
        return str(completion[-1]["content"] or "")
    raise DataError(f"{path}: row {number}: the completion is neither text nor a list of messages")
