"""Models, data and reward functions that a user names on the command line.

Each is found and used, or the command refuses it in one line before the run starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import journal, lines, module, settings_of, train_on

from estune.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# the model


def test_a_model_folder_that_is_not_there_is_named(data, refused):
    assert "/no/such/model: no such folder" in refused(*train_on("/no/such/model", data))
    assert "./model.gguf: no such file" in refused(*train_on("./model.gguf", data))


def test_a_hub_id_while_offline_is_named_with_the_ways_out(data, refused):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    message = refused(*train_on("someone/some-model", data))
    assert "someone/some-model: no such folder here, and the hub did not give it" in message
    assert "give a local folder or a .gguf file" in message


def test_a_file_or_a_folder_that_is_no_model_is_named(data, refused):
    assert "is neither a folder nor a .gguf file" in refused(*train_on(data, data))
    Path("empty").mkdir()
    assert "no config.json, so this is not a model folder" in refused(*train_on("./empty", data))


def test_a_model_that_is_no_causal_lm_is_named_with_its_kind(data, refused):
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, architectures=["BertForMaskedLM"]
    ).save_pretrained("bert")
    save_file({"x": torch.zeros(1)}, "bert/model.safetensors")
    assert "BertForMaskedLM is no causal language model" in refused(*train_on("./bert", data))


def test_weights_that_are_pickles_are_refused_unread(mini, data, refused):
    folder = Path("pickled")
    folder.mkdir()
    for path in mini.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    message = refused(*train_on("./pickled", data))
    assert "pickles, which can run code; convert them to safetensors first" in message
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"junk", "not a whole safetensors file"),
        ("model.safetensors.index.json", b"{", "not an index of weight files"),
        ("model.safetensors.index.json", b"[]", "not an index of weight files"),
        ("config.json", b"{", "config"),
        ("config.json", b'{"model_type": "no-such-type"}', "transformers cannot build this model"),
    ],
)
def test_a_damaged_model_file_is_named(name, content, says, mini, data, refused):
    folder = Path("damaged")
    folder.mkdir()
    for path in mini.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(content)
    assert says in refused(*train_on("./damaged", data))


def test_a_bad_regular_expression_is_named(mini, data, refused):
    assert "target_parameters: '(' is not a regular expression" in refused(
        *train_on(mini, data, "--target_parameters", "(")
    )


def test_a_regular_expression_that_matches_nothing_shows_what_the_names_look_like(
    mini, data, refused
):
    message = refused(*train_on(mini, data, "--target_parameters", "nothing_like_this"))
    assert "target_parameters: no parameter matches; they are named like" in message


def test_too_little_memory_says_how_much_is_needed_and_there(mini, data, refused, monkeypatch):
    monkeypatch.setattr("estune.common.resources.available_memory", lambda: 1024)
    message = refused(*train_on(mini, data))
    needed = float(message.split(" need ")[1].split(" MiB")[0])
    assert message.startswith("estune: memory: θ in fp32 and the engine's weights of ")
    assert 0 <= needed < 1
    assert "0.0 MiB are available; use a smaller model" in message


def test_too_little_disk_says_how_much_is_needed_and_there(mini, data, refused, monkeypatch):
    monkeypatch.setattr("estune.common.resources.free_disk", lambda folder: 0)
    message = refused(*train_on(mini, data, "--max_steps", "2000", "--save_steps", "1"))
    needed = float(message.split(" need ")[1].split(" MiB")[0])
    assert "disk: the checkpoints and the snapshot of θ need " in message
    assert 2000 * 4 * 900 / 2**20 < needed < 2000 * 4 * 3000 / 2**20
    assert "in out, 0.0 MiB are free" in message


def test_an_output_folder_that_cannot_be_written_is_named(mini, data, refused):
    message = refused(*train_on(mini, data, "--output_dir", data / "run"))
    assert f"output_dir: {data}/run cannot be written (Not a directory); choose another" in message


# the data


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"question": "a", "answer": "b"}],
            "has no column 'prompt'; its columns are answer, question",
        ),
        ([], "has no rows"),
        (
            [{"prompt": 3, "target": "x"}],
            "row 0: the prompt is neither text nor a list of messages",
        ),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_named(rows, says, mini, refused):
    assert f"data.jsonl: {says}" in refused(*train_on(mini, lines(Path("data.jsonl"), rows)))


def test_a_dataset_file_that_is_missing_damaged_or_of_unknown_kind_is_named(mini, refused):
    assert "missing.jsonl: no such file or folder" in refused(*train_on(mini, "missing.jsonl"))
    Path("data.txt").write_text("x")
    assert "data.txt: a data file must end in .json, .jsonl, .parquet, .csv" in refused(
        *train_on(mini, "data.txt")
    )
    Path("torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": ')
    assert "torn.jsonl: cannot be read" in refused(*train_on(mini, "torn.jsonl"))


def test_evaluation_without_held_out_data_is_refused(mini, data, refused):
    assert "give an eval_dataset, or eval_strategy no" in refused(
        *train_on(mini, data, "--eval_strategy", "steps")
    )


def test_more_training_rows_than_the_task_has_are_refused_with_the_number_there_is(mini, refused):
    message = refused(
        "train",
        "--model_name_or_path",
        mini,
        "--task",
        "conciseness",
        "--max_train_samples",
        "5000",
    )
    assert "has 112 rows, so it cannot give 5000; ask for at most 112" in message


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "saved", "saved splits", "folder"])
def test_a_run_on_each_kind_of_dataset(kind, mini, data):
    import datasets

    rows = datasets.Dataset.from_list([json.loads(line) for line in data.read_text().splitlines()])
    if kind == "folder":
        Path("dataset").mkdir()
        rows.to_json("dataset/train.jsonl")
        rows.to_json("dataset/test.jsonl")
    elif kind == "saved splits":
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk("dataset")
    elif kind == "saved":
        rows.save_to_disk("dataset")
    else:
        getattr(rows, f"to_{kind}")(
            f"dataset.{kind}", **({"lines": False} if kind == "json" else {})
        )
    name = f"dataset.{kind}" if Path(f"dataset.{kind}").exists() else "dataset"
    evaluating = ["--eval_strategy", "steps"] if kind in ("saved splits", "folder") else []
    assert (
        main(train_on(mini, name, "--max_steps", "1", "--max_train_samples", "3", *evaluating)) == 0
    )
    metrics = json.loads(Path("out/metrics.jsonl").read_text())
    assert ("eval_reward" in metrics) == bool(evaluating)
    assert journal()[1]["step"] == 1


def test_held_out_data_may_be_a_file_of_its_own(mini, data):
    held_out = lines(Path("held_out.jsonl"), [{"prompt": "what is cat", "target": "y"}])
    more = ["--eval_dataset_name", str(held_out), "--eval_strategy", "steps", "--max_steps", "1"]
    assert main(train_on(mini, data, *more)) == 0
    assert len(Path("out/completions/step-1.jsonl").read_text().splitlines()) == 1


# reward functions


def test_a_reward_function_of_the_working_folder_by_its_dotted_path(mini, data, tmp_path):
    name = module(
        "def short(completions, target, **columns):\n    return [-len(c) for c in completions]\n",
        tmp_path,
    )
    assert main(train_on(mini, data, "--reward_funcs", f"{name}.short")) == 0
    assert settings_of()["reward_functions"] == ["short"]
    assert all(reward < 0 for step in journal()[1:] for reward in step["rewards"])


def test_several_reward_functions_with_weights(mini, data, tmp_path):
    name = module(
        "def one(completions):\n    return [1] * len(completions)\n"
        "def two(completions):\n    return one(completions)\n",
        tmp_path,
    )
    more = [
        "--reward_funcs",
        f"{name}.one",
        f"{name}.two",
        "--reward_weights",
        "0.5",
        "2",
        "--max_steps",
        "1",
    ]
    assert main(train_on(mini, data, *more)) == 0
    assert journal()[1]["rewards"] == [2.5, 2.5]
    assert journal()[1]["coefficients"] == []


def test_nothing_in_the_working_folder_shadows_an_installed_module(data):
    Path("json.py").write_text("raise RuntimeError('shadowed')")
    Path("mine.py").write_text(
        "import json\ndef short(completions): return [float(json.dumps(1))] * len(completions)\n"
    )
    lines(Path("answers.jsonl"), [{"completion": "x"}])
    command = [
        Path(sys.executable).parent / "estune",
        "score",
        "--reward_funcs",
        "mine.short",
        "--completions",
        "answers.jsonl",
    ]
    scored = subprocess.run(command, capture_output=True, text=True)
    assert (scored.returncode, scored.stdout, scored.stderr) == (0, "1.0\n", "")


@pytest.mark.parametrize(
    ("text", "function", "says"),
    [
        (None, "f", "cannot import {name}.f (ModuleNotFoundError: No module named"),
        ("", "f", "cannot import {name}.f (AttributeError"),
        ("f = 3", "f", "{name}.f is a int, not a function"),
        ("raise ValueError('two\\nlines')", "f", "(ValueError: two lines)"),
        ("import sys; sys.exit()", "f", "cannot import {name}.f (SystemExit"),
        ("import sys; sys.exit('bye')", "f", "(SystemExit: bye)"),
        ("def f(", "f", "SyntaxError"),
        ("def f(completions, answer): ...", "f", "f: nothing provides its parameter 'answer'"),
        ("def f(target): ...", "f", "f: takes no 'completions'"),
        ("def f(completions, /): ...", "f", "f: nothing provides its parameter 'completions'"),
        (
            "def f(): ...",
            "f",
            "f: takes no 'completions'; write it as def f(completions, **columns)",
        ),
    ],
)
def test_a_reward_function_that_cannot_serve_is_refused_before_the_run(
    text, function, says, mini, data, tmp_path, refused
):
    name = f"absent_{tmp_path.name}" if text is None else module(text, tmp_path)
    message = refused(*train_on(mini, data, "--reward_funcs", f"{name}.{function}"))
    assert says.format(name=name) in message
    assert not Path("out").exists()


def test_an_unknown_reward_name_lists_the_known_ones(mini, data, refused):
    assert "countdown_reward" in refused(*train_on(mini, data, "--reward_funcs", "nope"))


def test_a_wrong_number_of_reward_weights_names_both_numbers(mini, data, refused):
    message = refused(*train_on(mini, data, "--reward_weights", "1", "2"))
    assert "reward_weights: 2 weights for 1 reward functions" in message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "raise KeyError('level')",
            "reward function f raised KeyError: 'level' at {file}:2; fix it and resume the run",
        ),
        ("import sys; sys.exit(0)", "reward function f raised SystemExit: 0 at {file}:2"),
        ("return [1]", "reward function f returned 1 rewards for 2 completions"),
        ("return 1", "reward function f returned 1; it must return one number"),
        (
            "return [float('nan')] * len(completions)",
            "reward function f returned nan for completion 0",
        ),
    ],
)
def test_a_reward_function_that_fails_at_the_first_batch_ends_the_run_in_a_line(
    body, says, mini, data, tmp_path, capsys
):
    name = module(f"def f(completions, **columns):\n    {body}\n", tmp_path)
    assert main(train_on(mini, data, "--reward_funcs", f"{name}.f")) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"estune: {says.format(file=tmp_path / f'{name}.py')}")
    assert err.count("\n") == 1
    assert "Traceback" not in out


def test_a_run_resumes_after_its_reward_function_is_fixed(mini, data, tmp_path, monkeypatch):
    broken = (
        "def f(completions, trainer_state):\n"
        "    if trainer_state.global_step == 1: raise ValueError\n"
        "    return [1, 2]\n"
    )
    name = module(broken, tmp_path)
    arguments = train_on(mini, data, "--reward_funcs", f"{name}.f", "--on_reward_error", "raise")
    assert main(arguments) == 2
    assert len(journal()) == 2
    module("def f(completions, **columns):\n    return [1, 2]\n# fixed\n", tmp_path)
    monkeypatch.delitem(sys.modules, name)
    assert main([*arguments, "--resume_from_checkpoint", "true"]) == 0
    assert len(journal()) == 3
