"""List the built-in tasks. A task brings its data, prompt and reward: train on it with `--task`.

  estune tasks                  # all tasks, with one line for those of reasoning-gym
  estune tasks reasoning_gym    # the tasks of reasoning-gym

The second column says where the data come from: generated, packed with estune, or from the hub.
"""

import argparse

from estune.errors import ConfigError

SUMMARY = "list the built-in tasks"
FAMILY = "reasoning_gym"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", nargs="?", metavar=FAMILY, help="list the tasks of this family")


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; estune tasks takes none")
    if options.family not in (None, FAMILY):
        raise ConfigError(f"there is no task family {options.family!r}; did you mean {FAMILY!r}?")
    for line in _family() if options.family else _all():
        print(line)
    return 0


def _all() -> list[str]:
    from estune.tasks import TASKS

    rows = [(task.name, task.source, task.summary) for task in TASKS.values()]
    rows.append(
        (
            f"{FAMILY}:NAME",
            "generated",
            f"about a hundred puzzles, such as Sudoku and ARC: estune tasks {FAMILY}",
        )
    )
    rows.append(("MODULE.TASK", "your own", "written by estune new-task NAME"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{name:<{widths[0]}}  {source:<{widths[1]}}  {summary}" for name, source, summary in rows
    ]


def _family() -> list[str]:
    from estune.tasks.gym import PREFIX, gym_names

    return [PREFIX + name for name in gym_names()]
