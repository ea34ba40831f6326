"""Name the color and the shape that a small image shows: a task that a blind model cannot solve.

  python recipes/vision/make_model.py            # the model, in about a minute
  estune train --config recipes/vision/shapes.yaml

The images are drawn here; nothing is downloaded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from estune.tasks import Row, Task, completion_text

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 215),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
QUESTION = "what is it"
SIDE = 32  # pixels


def draw(color: str, shape: str, generator: np.random.Generator) -> Image.Image:
    """Return an image of the shape, at a random place and in a random size, on a pale ground."""
    pale = generator.integers(190, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(pale)
    radius = int(generator.integers(6, 11))
    x, y = (int(at) for at in generator.integers(radius, SIDE - radius, 2))
    ink = tuple(int(np.clip(part + generator.integers(-25, 26), 0, 255)) for part in COLORS[color])
    pencil = ImageDraw.Draw(image)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pencil.ellipse(box, fill=ink)
    elif shape == "square":
        pencil.rectangle(box, fill=ink)
    elif shape == "triangle":
        pencil.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], ink)
    else:
        pencil.line((x - radius, y, x + radius, y), fill=ink, width=4)
        pencil.line((x, y - radius, x, y + radius), fill=ink, width=4)
    return image


def rows(count: int, seed: int, shares: Sequence[float] | None = None) -> list[Row]:
    """Return rows of random shapes; the same seed gives the same rows.

    shares: how often each shape comes; default equally often.
    """
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        color = str(generator.choice(list(COLORS)))
        shape = str(generator.choice(SHAPES, p=shares))
        made.append(
            {
                "prompt": [{"role": "user", "content": QUESTION}],
                "image": draw(color, shape, generator),
                "answer": f"{color} {shape}",
            }
        )
    return made


def named(completions: Any, answer: list[str], **columns: Any) -> list[float]:
    """Return half a point for the right color, half for the right shape."""
    rewards = []
    for completion, wanted in zip(completions, answer, strict=True):
        said = [*completion_text(completion).split()[:2], "", ""]
        rewards.append(
            sum(one == other for one, other in zip(said, wanted.split(), strict=False)) / 2
        )
    return rewards


def both(completions: Any, answer: list[str], **columns: Any) -> list[float]:
    """Return 1 where color and shape are right, else 0."""
    return [float(reward == 1) for reward in named(completions, answer)]


TASK = Task(
    name="shapes",
    summary="name the color and shape that an image shows",
    train=lambda count: rows(256 if count is None else count, 1),
    test=lambda count: rows(256 if count is None else count, 2),
    reward_funcs=(named,),
    defaults={"max_completion_length": 3, "batch_size": 256},
)
