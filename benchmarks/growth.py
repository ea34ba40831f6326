"""Measure how a step's time and memory grow with model size, members, prompts and tokens.

    python -m benchmarks.growth                              all four axes, in about ten minutes
    python -m benchmarks.growth --only members               one
    python -m benchmarks.growth --only members --points 2 8  other points of it
    python -m benchmarks.growth --draw docs/growth.svg       also draw all results in the file

    parameters    1, 10, 135, 500 and 1000 million; 2 members, 8 prompts, 16 tokens
    members       2 to 256; 1 million parameters, 4 prompts, 8 tokens
    prompts       4 to 64; 135 million parameters, 2 members, 16 tokens
    tokens        8 to 128; 135 million parameters, 2 members, 8 prompts

For each point the trainer runs three steps of a random Llama on transformers, in its own process.
The second step counts: the seconds to load its members, to generate, to update θ, and the rest.
The peak of memory is that of the whole run, with its checkpoint, without mapped files. The exponent
is the slope between the last two points with both axes logarithmic: 1 is linear, and more is
marked. Points that do not fit into memory are left out.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    ROOT,
    Failed,
    Figures,
    Peak,
    child,
    machine,
    pyplot,
    ran_as_child,
    save_picture,
    steps_between,
    word_tokenizer,
)
from estune.common.durable import write_text
from estune.common.resources import amount, available_memory

PARTS = {
    "load": "es/load_seconds",
    "generate": "es/generate_seconds",
    "update": "es/update_seconds",
}
SECONDS = (*PARTS, "rest")
MEASURED = (*SECONDS, "memory")
LINEAR = 1.05  # larger exponents are marked
VOCABULARY = 8192
PROMPT_TOKENS = 16
HEAD = 32  # width of an attention head
SIGMA = 0.02  # as large as the weights, so that members' completions differ and θ moves
BYTES_PER_PARAMETER = 10  # θ 4, the engine's weights 2 or 4, a checkpoint's tensors 2

Point = dict[str, float]


@dataclass(frozen=True)
class Size:
    """The size of a step; parameters in millions."""

    parameters: int
    members: int
    prompts: int
    tokens: int


# the size with 0 for the axis itself, and the points
AXES = {
    "parameters": (Size(0, 2, 8, 16), (1, 10, 135, 500, 1000)),
    "members": (Size(1, 0, 4, 8), (2, 8, 32, 128, 256)),
    "prompts": (Size(135, 2, 0, 16), (4, 8, 16, 32, 64)),
    "tokens": (Size(135, 2, 8, 0), (8, 16, 32, 64, 128)),
}


def main() -> int:
    if ran_as_child({"make": make, "run": run}):
        return 0
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    console.print(machine(), soft_wrap=True)
    found = json.loads(options.json.read_text()) if options.json.is_file() else {}
    failures = 0
    for axis in [options.only] if options.only else AXES:
        points: list[Point] = []
        for value in options.points or AXES[axis][1]:
            try:
                with console.status(f"{axis}: {value}"):
                    points += measure(axis, value, console)
            except Failed as error:
                console.print(f"{axis} {value}: failed, {error}", soft_wrap=True)
                failures += 1
            now = f"{datetime.now():%Y-%m-%d %H:%M}"
            found[axis] = {"machine": machine(), "measured": now, "points": points}
            write_text(options.json, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        console.print(table(axis, points))
    if options.draw:
        draw({axis: found[axis]["points"] for axis in AXES if axis in found}, options.draw)
    return 1 if failures else 0


def measure(axis: str, value: int, console: Console) -> list[Point]:
    """Return one point, or none if it does not fit into memory.

    Raises:
        Failed: the run failed.
    """
    size = replace(AXES[axis][0], **{axis: value})
    needed = BYTES_PER_PARAMETER * 10**6 * size.parameters + 2**29
    available = available_memory()
    if needed > available:
        sizes = f"it needs about {amount(needed)}, {amount(available)} are available"
        console.print(f"{axis} {value}: left out, {sizes}")
        return []
    point: Point = {axis: value}
    with tempfile.TemporaryDirectory(prefix="estune-growth-") as folder:
        made = child("benchmarks.growth", "--child", "make", folder, str(size.parameters))
        words = json.dumps(dataclasses.asdict(size))
        point |= child("benchmarks.growth", "--child", "run", folder, words)
    if axis == "parameters":
        point["parameters"] = made["parameters"] / 1e6  # rather than the round number
    return [point]


def make(folder: str, millions: str) -> Figures:
    """Write a random Llama of about so many million parameters; return its exact number."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width = shape(10**6 * int(millions))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        intermediate_size=width * 8 // 3,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    return {"parameters": model.num_parameters()}


def shape(parameters: int) -> tuple[int, int]:
    """Return layers L and width W of a model with the usual proportions, W ≈ 128 · L.

    It solves 12 · L · W² + VOCABULARY · W = parameters for W, rounded to whole heads.
    """
    layers = max(2, round((parameters / (12 * 128**2)) ** (1 / 3)))
    root = math.sqrt(VOCABULARY**2 + 48 * layers * parameters)
    width = (root - VOCABULARY) / (24 * layers)
    return layers, max(1, round(width / HEAD)) * HEAD


def run(folder: str, words: str) -> Figures:
    """Train for three steps; return the second's figures, and the peak of memory."""
    peak = Peak()
    size = Size(**json.loads(words))
    (step,) = steps_between(
        folder,
        [{"prompt": prompt(number), "target": "w"} for number in range(size.prompts)],
        max_steps=3,
        population_size=size.members,
        max_completion_length=size.tokens,
        sigma=SIGMA,
    )
    seconds = {name: step[metric] for name, metric in PARTS.items()}
    return seconds | {
        "rest": step["step_time"] - sum(seconds.values()),
        "memory": peak.bytes,
        "completion_tokens": step["completions/mean_length"],
    }


def prompt(number: int) -> str:
    """Return PROMPT_TOKENS words, different for each number."""
    start = PROMPT_TOKENS * number
    words = range(start, start + PROMPT_TOKENS)
    return " ".join(f"w{2 + word % (VOCABULARY - 2)}" for word in words)


def exponent(points: Sequence[Point], axis: str, name: str) -> float | None:
    """Return the slope between the last two points, both axes logarithmic, if it is defined."""
    if len(points) < 2 or any(point[name] <= 0 for point in points[-2:]):
        return None
    before, last = points[-2:]
    return math.log(last[name] / before[name]) / math.log(last[axis] / before[axis])


def table(axis: str, points: Sequence[Point]) -> Table:
    unit = ", by millions" if axis == "parameters" else ""
    title = f"{axis}: seconds of a step, and peak memory{unit}"
    drawn = Table(title=title, caption="* faster than linearly")
    for name in (axis, *MEASURED):
        drawn.add_column(name, justify="right")
    for point in points:
        seconds = [f"{point[name]:.3g}" for name in SECONDS]
        drawn.add_row(f"{point[axis]:.4g}", *seconds, amount(int(point["memory"])))
    drawn.add_section()
    drawn.add_row("exponent", *(marked(exponent(points, axis, name)) for name in MEASURED))
    return drawn


def marked(slope: float | None) -> str:
    if slope is None:
        return ""
    return f"{slope:.2f}" + (" *" if slope > LINEAR else "")


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """Draw seconds above memory, one column per axis.

    The dotted line is linear growth through the last point of generating.
    """
    figure, axes = pyplot().subplots(
        2, len(found), figsize=(3.4 * len(found), 5.4), squeeze=False, layout="constrained"
    )
    for (axis, points), seconds, memory in zip(found.items(), *axes, strict=True):
        draw_axis(axis, points, seconds, memory)
    axes[0][0].set_ylabel("seconds of a step")
    axes[1][0].set_ylabel("peak memory, GiB")
    axes[0][0].legend(frameon=False)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    save_picture(figure, path)


def draw_axis(axis: str, points: Sequence[Point], seconds: Any, memory: Any) -> None:
    """Draw one axis into the panels of seconds and of memory."""
    at = [point[axis] for point in points]
    for name in SECONDS:
        seconds.plot(at, [point[name] for point in points], label=name, marker=".")
    linear = [points[-1]["generate"] * value / at[-1] for value in at]
    seconds.plot(at, linear, color="gray", linestyle=":", label="linear")
    title = "million parameters" if axis == "parameters" else axis
    seconds.set(title=title, xscale="log", yscale="log")
    gibibytes = [point["memory"] / 2**30 for point in points]
    memory.plot(at, gibibytes, color="black", marker=".")
    memory.set(xscale="log", ylim=(0, 1.1 * max(gibibytes, default=1)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=AXES, help="one axis [all]")
    add("--points", type=int, nargs="+", metavar="N", help="points of that axis, in rising order")
    add(
        "--json",
        type=Path,
        default=ROOT / "runs" / "growth.json",
        metavar="FILE",
        help="results, written after each point [runs/growth.json]",
    )
    add("--draw", type=Path, metavar="FILE", help="draw a picture into this .svg or .png")
    options = parser.parse_args()
    if options.points and not options.only:
        parser.error("--points: name the axis with --only")
    least = 2 if options.only == "members" else 1
    points = options.points or [least]
    if points != sorted(set(points)) or points[0] < least:
        parser.error(f"--points: give whole numbers from {least}, in rising order")
    if options.draw:
        pyplot()  # without matplotlib, exit before anything is measured
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
