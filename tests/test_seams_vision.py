"""Whole runs of models that see: images in, exact θ out."""

import pytest
import torch
from helpers import contents
from seeing import FAMILIES, make, seen_rows

from estune import ESConfig, ESTrainer

pytest.importorskip("PIL")

FAST = "llava"
EACH = [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def redness(completions, image, **columns):
    """A reward that looks at the image, which it gets as TRL gives it."""
    assert all(one.size == (24, 20) for one in image)
    return [
        len(each[0]["content"]) + one.getpixel((20, 1))[0] / 255
        for each, one in zip(completions, image, strict=True)
    ]


def train(folder, out, steps, resume=False, rows=None, **settings):
    usual = {
        "population_size": 2,
        "sigma": 0.3,
        "save_steps": 1,
        "max_completion_length": 6,
        "engine": "transformers",
        "dtype": "float32",
        "reward_workers": 0,
        "disable_tqdm": True,
    }
    config = ESConfig(output_dir=str(out), max_steps=steps, **usual | settings)
    rows = seen_rows(3) if rows is None else rows
    trainer = ESTrainer(str(folder), redness, config, rows, rows[:2])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("family", EACH)
def test_a_run_with_images_resumes_to_the_same_bytes(family, tmp_path):
    from transformers import AutoModelForImageTextToText

    folder = make(family, tmp_path / "model")
    train(folder, tmp_path / "whole", 3)
    train(folder, tmp_path / "parts", 2)
    train(folder, tmp_path / "parts", 3, resume=True)
    whole, parts = (contents(tmp_path / name / "checkpoint-3") for name in ("whole", "parts"))
    assert whole["model.safetensors"] == parts["model.safetensors"]
    assert whole["model.safetensors"] != (folder / "model.safetensors").read_bytes()
    tuned = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole" / "checkpoint-3")
    before = AutoModelForImageTextToText.from_pretrained(folder)
    language = {id(one) for one in tuned.get_decoder().parameters()}
    language |= {id(one) for one in tuned.get_output_embeddings().parameters()}
    for (name, new), old in zip(tuned.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) == (id(new) not in language), name
