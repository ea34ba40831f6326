"""How time and memory of a step grow, each against one thing at a time, with random Llamas and the real trainer on transformers.

    python -m benchmarks.growth                              all four axes, in about ten minutes
    python -m benchmarks.growth --only members               one
    python -m benchmarks.growth --only members --points 2 8  fewer or other points of it
    python -m benchmarks.growth --draw docs/growth.svg       and draw all that is in the file, also of earlier calls

    parameters    1, 10, 135, 500 and 1000 million; 2 members, 8 prompts, 16 tokens
    members       2 to 256; 1 million parameters, 4 prompts, 8 tokens
    prompts       4 to 64; 135 million parameters, 2 members, 16 tokens
    tokens        8 to 128; 135 million parameters, 2 members, 8 prompts

A point is a run of three steps in a process of its own, and the second step counts: seconds in all to load its members, to
generate, to update θ, and the rest of the step, which is the trainer's; and the peak of memory that cannot be given back, of the
whole run with its checkpoint. The exponent is the slope between the last two points where both axes are logarithmic: 1 is
linear, and what grows faster is marked. Sizes that do not fit into memory are left out, with a line that says so.
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
    Peak,
    child,
    machine,
    pyplot,
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
MEASURED = (*PARTS, "rest", "memory")
LINEAR = 1.05  # exponents above are marked: timings aren't exact
VOCABULARY, PROMPT_TOKENS, HEAD = 8192, 16, 32
SIGMA = 0.02  # as large as the weights, so that members answer differently and θ moves
_BYTES = 10  # a parameter: θ 4, the engine's weights 2 or 4, a checkpoint's tensors 2

Point = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Of a step; parameters in millions."""

    parameters: int
    members: int
    prompts: int
    tokens: int


AXES = {
    "parameters": (Size(0, 2, 8, 16), (1, 10, 135, 500, 1000)),
    "members": (Size(1, 0, 4, 8), (2, 8, 32, 128, 256)),
    "prompts": (Size(135, 2, 0, 16), (4, 8, 16, 32, 64)),
    "tokens": (Size(135, 2, 8, 0), (8, 16, 32, 64, 128)),
}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return 0
    asked, console = (
        _options(),
        Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False),
    )
    console.print(machine(), soft_wrap=True)
    found = json.loads(asked.json.read_text()) if asked.json.is_file() else {}
    whole = True
    for axis in [asked.only] if asked.only else AXES:
        points: list[Point] = []
        for point in asked.points or AXES[axis][1]:
            with console.status(f"{axis}: {point}"):
                whole &= _add(points, axis, point, console)
            found[axis] = {
                "machine": machine(),
                "measured": f"{datetime.now():%Y-%m-%d %H:%M}",
                "points": points,
            }
            write_text(asked.json, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        console.print(_table(axis, points))
    if asked.draw:
        draw({axis: found[axis]["points"] for axis in AXES if axis in found}, asked.draw)
    return 0 if whole else 1


def _add(points: list[Point], axis: str, point: int, console: Console) -> bool:
    """Measure a point; False where that failed, which is told. One that cannot fit is told of, and is no failure."""
    size = replace(AXES[axis][0], **{axis: point})
    needed = _BYTES * 10**6 * size.parameters + 2**29
    if needed > available_memory():
        console.print(
            f"{axis} {point}: left out, it takes some {amount(needed)} and {amount(available_memory())} are available"
        )
        return True
    try:
        points.append(
            {axis: point} | _measured(axis, size)
        )  # parameters: as many as there really are
    except Failed as error:
        console.print(f"{axis} {point}: failed, {error}", soft_wrap=True)
        return False
    return True


def _measured(axis: str, size: Size) -> Point:
    with tempfile.TemporaryDirectory(prefix="estune-growth-") as folder:
        made = child("benchmarks.growth", "--child", "make", folder, str(size.parameters))
        measured: Point = child(
            "benchmarks.growth", "--child", "run", folder, json.dumps(dataclasses.asdict(size))
        )
        return measured | ({"parameters": made / 1e6} if axis == "parameters" else {})


def make(folder: str, millions: str) -> int:
    """Write a random Llama of about so many million parameters, with a tokenizer that knows a word a token; returns how many it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width = shape(10**6 * int(millions))
    heads = {
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "intermediate_size": width * 8 // 3,
    }
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        **heads,
        **ends,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    return int(model.num_parameters())


def shape(parameters: int) -> tuple[int, int]:
    """Layers and width, in the proportions of real ones: width ≈ 128 × layers, 12 · width² parameters a layer, and the embedding."""
    layers = max(2, round((parameters / (12 * 128**2)) ** (1 / 3)))
    root = math.sqrt(VOCABULARY**2 + 48 * layers * parameters)
    return layers, max(1, round((root - VOCABULARY) / (24 * layers) / HEAD)) * HEAD


def run(folder: str, size: str) -> Point:
    """The second of three steps, and the peak of memory."""
    peak, wanted = Peak(), Size(**json.loads(size))
    words = [f"w{2 + index % (VOCABULARY - 2)}" for index in range(PROMPT_TOKENS * wanted.prompts)]
    prompts = [
        " ".join(words[start : start + PROMPT_TOKENS])
        for start in range(0, len(words), PROMPT_TOKENS)
    ]
    rows = [{"prompt": prompt, "target": "w"} for prompt in prompts]
    settings = {
        "population_size": wanted.members,
        "max_completion_length": wanted.tokens,
        "sigma": SIGMA,
    }
    (step,) = steps_between(folder, rows, max_steps=3, **settings)
    seconds = {name: step[metric] for name, metric in PARTS.items()}
    rest = step["step_time"] - sum(seconds.values())
    return seconds | {
        "rest": rest,
        "memory": peak.bytes,
        "completion_tokens": step["completions/mean_length"],
    }


CHILDREN: dict[str, Any] = {"make": make, "run": run}


def exponent(points: Sequence[Point], axis: str, name: str) -> float | None:
    """The slope between the last two points where both axes are logarithmic; None where there is none."""
    if len(points) < 2 or any(point[name] <= 0 for point in points[-2:]):
        return None
    before, last = points[-2:]
    return math.log(last[name] / before[name]) / math.log(last[axis] / before[axis])


def _table(axis: str, points: Sequence[Point]) -> Table:
    title = f"{axis}: seconds of a step, and peak memory" + (
        ", by millions" if axis == "parameters" else ""
    )
    table = Table(title=title, caption="* faster than linearly")
    table.add_column(axis, justify="right")
    for name in MEASURED:
        table.add_column(name, justify="right")
    for point in points:
        table.add_row(
            f"{point[axis]:.4g}",
            *(f"{point[name]:.3g}" for name in MEASURED[:-1]),
            amount(int(point["memory"])),
        )
    table.add_section()
    table.add_row("exponent", *(_marked(exponent(points, axis, name)) for name in MEASURED))
    return table


def _marked(slope: float | None) -> str:
    return "" if slope is None else f"{slope:.2f}" + (" *" if slope > LINEAR else "")


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """Seconds above and memory below, an axis a column; a dotted line is linear growth from generating's last point."""
    figure, axes = pyplot().subplots(
        2, len(found), figsize=(3.4 * len(found), 5.4), squeeze=False, layout="constrained"
    )
    for column, (axis, points) in enumerate(found.items()):
        at = [point[axis] for point in points]
        for name in MEASURED[:-1]:
            axes[0][column].plot(at, [point[name] for point in points], label=name, marker=".")
        axes[1][column].plot(
            at, [point["memory"] / 2**30 for point in points], color="black", marker="."
        )
        linear = [points[-1]["generate"] * one / at[-1] for one in at] if points else []
        axes[0][column].plot(at, linear, color="gray", linestyle=":", label="linear")
        axes[0][column].set(
            title="million parameters" if axis == "parameters" else axis, xscale="log", yscale="log"
        )
        axes[1][column].set(
            xscale="log",
            ylim=(0, 1.1 * max((point["memory"] / 2**30 for point in points), default=1)),
        )
    axes[0][0].set_ylabel("seconds of a step")
    axes[1][0].set_ylabel("peak memory, GiB")
    axes[0][0].legend(frameon=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
    save_picture(figure, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=AXES, help="one axis [all]")
    add(
        "--points",
        type=int,
        nargs="+",
        metavar="N",
        help="of the axis that --only names, in rising order [as above]",
    )
    add(
        "--json",
        type=Path,
        default=ROOT / "runs" / "growth.json",
        metavar="FILE",
        help="written after each point [runs/growth.json]",
    )
    add("--draw", type=Path, metavar="FILE", help="draw a picture into this .svg or .png")
    asked = parser.parse_args()
    points = asked.points or []
    if points and not asked.only:
        parser.error("--points: say of which axis with --only")
    if (
        points != sorted(set(points))
        or any(point < 1 for point in points)
        or (asked.only == "members" and 1 in points)
    ):
        parser.error("--points: give whole numbers from 1, of members from 2, in rising order")
    if asked.draw:
        pyplot()  # or end now
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    return asked


if __name__ == "__main__":
    sys.exit(main())
