"""List the built-in tasks: data, prompt and reward together, for `--task`."""

import argparse

from estune.errors import ConfigError

SUMMARY = "list the built-in tasks"


def add_options(parser: argparse.ArgumentParser) -> None:
    del parser  # there are none


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    from estune.tasks import TASKS

    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; estune tasks takes none")
    width = max(map(len, TASKS))
    for task in TASKS.values():
        print(f"{task.name:<{width}}  {task.summary}")
    return 0
