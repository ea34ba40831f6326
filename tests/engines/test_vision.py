"""Models that see, on the transformers engine: they answer as plain transformers does."""

import pytest
import torch
from seeing import FAMILIES, make, seen_rows

from estune import ESConfig
from estune.common.types import Unperturbed
from estune.engines.processor import load_processor
from estune.engines.transformers import open_engine
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

pytest.importorskip("PIL")

_FAST = "llava"
_FAMILIES = [
    family if family == _FAST else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
]


def engine_of(folder, **settings):
    found = open_checkpoint(folder)
    known = layout(found)
    config = ESConfig(**settings)
    engine = open_engine(folder, known, config, "cpu", torch.float32)
    theta = Theta.load(found, known.targets(None), device="cpu", share=False)
    engine.check(theta, Unperturbed(0))
    return engine


def plain(folder, rows, budget):
    """What transformers itself generates for each row alone."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    tokenizer = processor.tokenizer
    answers = []
    for row in rows:
        text = {"type": "text", "text": row["prompt"][0]["content"]}
        image = row.get("image")
        parts = [{"type": "image"}, text] if image else [text]
        shown = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        images = {"images": [[image]]} if image else {}
        made = processor(text=[shown], return_tensors="pt", **images)
        with torch.inference_mode():
            out = model.generate(**made, max_new_tokens=budget, do_sample=False)
        new = out[0, made["input_ids"].shape[1] :].tolist()
        answers.append(new[: new.index(1)] if 1 in new else new)
    return answers


@pytest.mark.parametrize("family", _FAMILIES)
def test_eight_answers_about_images_are_those_of_transformers(family, tmp_path):
    folder = make(family, tmp_path / "model")
    rows = seen_rows()
    prompts = [row["prompt"] for row in rows_of(rows, "rows")]
    answers = engine_of(folder).generate(prompts, max_completion_length=12)
    assert [answer.ids for answer in answers] == plain(folder, rows, 12)


@pytest.mark.parametrize("family", _FAMILIES)
def test_eight_answers_to_text_are_those_of_transformers(family, tmp_path):
    folder = make(family, tmp_path / "model")
    rows = [{"prompt": row["prompt"]} for row in seen_rows()]
    answers = engine_of(folder).generate([row["prompt"] for row in rows], max_completion_length=12)
    assert [answer.ids for answer in answers] == plain(folder, rows, 12)
