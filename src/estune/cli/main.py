"""`estune`: choose a command, run it, and turn its result or error into an exit status.

0 done; 1 failed, can be resumed; 2 wrong input, explained in one line; 130 Ctrl-C; 143 SIGTERM.
`--debug`, or ESTUNE_TRACEBACK=1 in the environment, adds the traceback with all causes.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from estune import __version__
from estune.cli import compare, evaluate, new_task, plan, replay, score, tasks, train
from estune.common.guard import reason
from estune.common.visible import clean_streams, one_line
from estune.errors import EstuneError, InputError

_COMMANDS = {
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "plan": plan,
    "score": score,
    "replay": replay,
    "tasks": tasks,
    "new-task": new_task,
}
_EPILOG = """first run:
  estune train --task conciseness --sigma 0.005 \\
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
each command explains itself: estune train --help"""
_RESUME = "the run can be resumed with --resume_from_checkpoint true"


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises InputError, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    with clean_streams():
        return _logged(sys.argv[1:] if arguments is None else list(arguments))


def _logged(arguments: list[str]) -> int:
    logging.basicConfig(format="estune: %(message)s", level=logging.WARNING, handlers=[_ToStderr()])
    logging.getLogger("estune").setLevel(logging.INFO)
    try:
        return _run(arguments)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, Exception) and _debugging(arguments):
            _print_traceback(error)
        return _exit_status(error)


def _exit_status(error: BaseException) -> int:
    """Print in one line why the command ended; return the exit status."""
    if isinstance(error, EstuneError):
        return _ended(error, 2 if isinstance(error, InputError) else 1)
    if isinstance(error, KeyboardInterrupt):
        return _ended(f"stopped by Ctrl-C; {_RESUME}", 130)
    if isinstance(error, BrokenPipeError):  # the program that reads our output, such as head, ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, SystemExit):
        if error.code == 143:
            return _ended(f"stopped by SIGTERM; {_RESUME}", 143)
        if isinstance(error.code, int):
            return error.code
        return _ended(error.code, 1) if error.code else 0
    if isinstance(error, OSError):
        where = error.filename or "system"
        return _ended(f"{where}: {error.strerror or error}; fix that and resume the run", 1)
    what = f"unexpected {type(error).__name__} at {_origin(error)} ({reason(error)})"
    return _ended(f"{what}; --debug shows the traceback", 1)


def _debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("ESTUNE_TRACEBACK", "0") not in ("", "0")


def _print_traceback(error: BaseException) -> None:
    """Print the traceback with all causes, including those that `raise … from None` hides."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        cause.__suppress_context__ = cause.__cause__ is not None
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)


def _origin(error: BaseException) -> str:
    """Return the file and line of an unexpected error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


class _ToStderr(logging.Handler):
    """Writes to the sys.stderr of the moment: progress bars replace it, to print above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record).splitlines() or [""]
        # Further lines are indented, so that a message cannot fake the start of another one.
        print("\n  ".join(lines), file=sys.stderr)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="estune",
        description="Fine-tune all parameters of an LLM by evolution strategies, no gradients.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_debug(parser)
    parser.add_argument("--version", action="version", version=f"estune {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, module in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            usage=getattr(module, "USAGE", None),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:  # building the options of all commands would take too long
            module.add_options(sub)
            _add_debug(sub)
    options, unknown = parser.parse_known_args(arguments)
    return int(_COMMANDS[options.command].run(options, unknown))


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which is accepted before and after the command."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback behind an error",
    )


def _ended(why: object, status: int) -> int:
    """Print why the command ended; return `status`."""
    print(f"estune: {one_line(why)}", file=sys.stderr)
    return status
