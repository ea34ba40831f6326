"""Execute a comparison's runs one after another, each in a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from estune.common.durable import write_text
from estune.errors import ConfigError, EstuneError, InputError
from estune.evaluation.compare.runs import ComparisonRun

Say = Callable[[str], None]

# The child imports modules from the same folders as this process, so it runs this estune.
_COMMAND = """import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from estune.cli.main import main
sys.exit(main())"""


def claim(runs: Sequence[ComparisonRun], output: Path) -> None:
    """Create the runs' folders, each with its run.json.

    Raises:
        ConfigError: a folder contains a different run.
    """
    for run in runs:
        path = output / run.name / "run.json"
        now = json.loads(json.dumps(asdict(run)))
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(now, indent=1) + "\n")
        elif (name := _differs(json.loads(path.read_text(encoding="utf-8")), now)) is not None:
            raise ConfigError(
                f"output: {path.parent} holds a run with another {name}; "
                "give the same again, or choose another folder"
            )


def execute_all(
    runs: Sequence[ComparisonRun], output: Path, say: Say, done: Callable[[], None]
) -> None:
    """Execute the runs that are not finished; call `done` after each.

    Raises:
        EstuneError: a run failed; finished runs are kept.
        KeyboardInterrupt, SystemExit: on Ctrl-C or SIGTERM, after the current run has stopped.
    """
    left = [run for run in runs if not result_of(run, output)]
    if left and not Path(left[0].settings["model_name_or_path"]).is_dir():
        _child(left[0], output, say, "--prepare")
    for number, run in enumerate(runs, 1):
        if run not in left:
            say(f"{run.label} | finished already")
            continue
        say(f"{run.label} | run {number} of {len(runs)}")
        _child(run, output, say)
        done()


def result_of(run: ComparisonRun, output: Path) -> dict[str, Any] | None:
    """Return the content of a run's result file, or None if the run is not finished."""
    path = output / run.name / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def collect(runs: Sequence[ComparisonRun], output: Path) -> dict[str, Any]:
    """Return the content of compare.json: all finished runs."""
    first = runs[0]
    return {
        "model": first.config().model_name_or_path,
        "tokens": first.tokens,
        "eval_tokens": first.eval_tokens,
        "eval_prompts": first.eval_prompts,
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "runs": [found for run in runs if (found := result_of(run, output))],
    }


def _child(run: ComparisonRun, output: Path, say: Say, *more: str) -> None:
    """Execute `run` in a child process: `estune compare --run FOLDER`.

    `say` gets each line of its output after the run's label; its error output goes to log.txt.
    """
    folder = output / run.name
    path = folder / "log.txt"
    old_bytes = path.stat().st_size if path.exists() else 0  # of an earlier attempt
    command = [
        sys.executable,
        "-c",
        _COMMAND,
        json.dumps(sys.path),
        "compare",
        "--run",
        str(folder),
        *more,
    ]
    with (
        path.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                say(f"{run.label} | {line.rstrip()}")
        except BaseException:
            # Ctrl-C was sent to the child too. This is its second signal, so it stops at once.
            child.terminate()
            raise
    if child.returncode:
        _raise_failure(run, path, child.returncode, old_bytes)


def _raise_failure(run: ComparisonRun, log: Path, status: int, old_bytes: int) -> None:
    """Raise an error for a child that ended with `status`, with the last line that it logged.

    Earlier attempts logged the first `old_bytes` of the file.
    """
    if status == 130:
        raise KeyboardInterrupt
    if status == 143:
        raise SystemExit(143)
    lines = log.read_bytes()[old_bytes:].decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    message = last.removeprefix("estune: ")
    if status < 0:
        killed = signal.Signals(-status).name
        why = ", as the system does when memory runs out" if killed == "SIGKILL" else ""
        message = f"killed by {killed}{why}"
    kind = InputError if status == 2 else EstuneError
    kept = "finished runs are kept; repeat the command to continue"
    raise kind(f"{run.label}: {message} (see {log}; {kept})")


def _differs(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return the name of the first field or setting in which two runs differ, or None."""
    for name in sorted({*before, *now}):
        had, has = before.get(name), now.get(name)
        if had != has and isinstance(had, dict) and isinstance(has, dict):
            return next(str(key) for key in sorted({*had, *has}) if had.get(key) != has.get(key))
        if had != has:
            return name
    return None
