"""List the built-in tasks: data, prompt and reward together, for `--task`.

  estune tasks                  # all, those of reasoning-gym in one line
  estune tasks reasoning_gym    # the names of reasoning-gym's datasets

After each name stands where its data come from: generated, packed with estune, or from the hub.
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
        raise ConfigError(
            f"there is no family of tasks {options.family!r}; did you mean {FAMILY!r}?"
        )
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
            f"some hundred puzzles, Sudoku and ARC among them: estune tasks {FAMILY}",
        )
    )
    rows.append(("MODULE.TASK", "your own", "written by estune new-task NAME"))
    name, source = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{row[0]:<{name}}  {row[1]:<{source}}  {row[2]}" for row in rows]


def _family() -> list[str]:
    from estune.tasks.gym import PREFIX, gym_names

    return [PREFIX + name for name in gym_names()]
