"""Whole runs of models that see: images in, exact θ out."""

import json

import pytest
import torch
from helpers import contents, lines, train_on
from seeing import FAMILIES, make, picture, seen_rows

from estune import ESConfig, ESTrainer
from estune.cli.main import main

pytest.importorskip("PIL")

EVALUATED = "--dataset_test_split train --reward_funcs conciseness_reward --engine fake".split()


def flat(text):
    return " ".join(text.split())


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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return make("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture
def file(tmp_path):
    """A file of rows with paths of images beside it."""
    rows = []
    for index, row in enumerate(seen_rows(4)):
        row["image"].save(tmp_path / f"{index}.png")
        rows.append(row | {"image": f"{index}.png", "target": "x"})
    return lines(tmp_path / "data.jsonl", rows)


def test_a_run_from_a_file_leaves_no_image_in_its_folder(
    llava, file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    held_out = ["--eval_dataset_name", file, "--eval_on_start", "true", "--eval_strategy", "steps"]
    assert main([*train_on(llava, file), *map(str, held_out)]) == 0
    said = capsys.readouterr().out
    assert "the 14,880 parameters of multi_modal_projector, vision_tower are left out" in flat(said)
    assert "AutoModelForImageTextToText" in said
    kept = [path.read_text() for path in (tmp_path / "out").rglob("*.json*") if path.is_file()]
    assert not any("ImageFile" in text or "png" in text for text in kept)
    evaluated = ["--model", "out/checkpoint-2", "--base", str(llava), "--dataset_name", str(file)]
    assert main(["eval", *evaluated, "--kl", *EVALUATED]) == 0
    assert "KL in nats" in flat(capsys.readouterr().out)
    assert main(["plan", "--model_name_or_path", str(llava)]) == 0


def test_a_model_of_text_refuses_a_conversation_with_an_image(mini, file, refused):
    line = refused(*train_on(mini, file))
    assert "row 0: has an image, but" in line
    assert "takes text only" in line


def test_a_model_that_sees_refuses_an_image_without_a_place(llava, tmp_path, refused):
    picture("red").save(tmp_path / "a.png")
    data = lines(tmp_path / "rows.jsonl", [{"prompt": "what", "image": "a.png", "target": "x"}])
    assert "its prompt must be a conversation" in refused(*train_on(llava, data))


def test_score_gives_reward_functions_the_images(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def wide(completions, image, **c):\n    return [i.width for i in image]\n"
    )
    answers = [json.loads(line) | {"completion": "a"} for line in file.read_text().splitlines()]
    data = lines(tmp_path / "answers.jsonl", answers)
    assert main(["score", "--reward_funcs", "mine.wide", "--completions", str(data)]) == 0
    assert capsys.readouterr().out.split() == ["24.0"] * 4


def test_a_part_of_sound_is_refused_in_one_line(llava, tmp_path, refused):
    prompt = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]
    data = lines(tmp_path / "rows.jsonl", [{"prompt": prompt, "target": "x"}])
    line = refused(*train_on(llava, data))
    assert "a part of type 'audio'; only text and images are supported" in line
