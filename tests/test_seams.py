"""Errors of other libraries reach the user as one line of our own, from every public entry point.

--debug shows the cause.
"""

import asyncio
import errno
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path

import datasets
import pytest
from helpers import lines, make_model, make_tokenizer

from estune import ESConfig, ESTrainer, EstuneError
from estune.cli.main import main
from estune.common.guard import guarded, reason
from estune.errors import ModelError
from estune.rewards.call import Call, Failure, Returned, call_function

# The calls into other libraries during a run of the transformers engine on a local model and file.
CALLS = [
    "transformers:AutoConfig.from_pretrained",
    "transformers:AutoTokenizer.from_pretrained",
    "transformers:AutoModelForCausalLM.from_pretrained",
    "transformers:AutoModelForCausalLM.from_config",
    "transformers:GenerationConfig.from_pretrained",
    "transformers:GenerationConfig.validate",
    "transformers:PreTrainedModel.from_pretrained",
    "transformers:LlamaForCausalLM.generate",
    "transformers:PreTrainedModel.get_output_embeddings",
    "transformers:PreTrainedModel.get_input_embeddings",
    "transformers:PreTrainedModel.tie_weights",
    "transformers:PreTrainedModel.save_pretrained",
    "transformers:PreTrainedModel.to",
    "transformers:LlamaForCausalLM.forward",
    "transformers:PreTrainedTokenizerFast.__call__",
    "transformers:PreTrainedTokenizerFast.apply_chat_template",
    "transformers:PreTrainedTokenizerFast.convert_ids_to_tokens",
    "transformers:PreTrainedTokenizerFast.decode",
    "transformers:PreTrainedTokenizerFast.get_vocab",
    "transformers:PreTrainedTokenizerFast.save_pretrained",
    "transformers.conversion_mapping:get_model_conversion_mapping",
    "estune.theta.checkpoint:safe_open",
    "estune.theta.checkpoint:save_file",
    "accelerate.tracking:get_available_trackers",
    "huggingface_hub:HfApi",
    "huggingface_hub:snapshot_download",
    "datasets:load_dataset",
    "yaml:safe_load",
    "cloudpickle:dumps",
]


class Strange(Exception):
    """A kind that no list of exception types can hold."""


def fail(*arguments, **settings):
    raise Strange("the library\nhas its own ideas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, prompts of both kinds, completions and rewards."""
    folder = tmp_path_factory.mktemp("seams")
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    make_model(folder / "model", **small)
    chat = [{"role": "user", "content": "what is red"}]
    lines(
        folder / "text.jsonl",
        [{"prompt": "cat", "target": "x"}, {"prompt": "the red dog", "target": "xx"}],
    )
    lines(folder / "chat.jsonl", [{"prompt": chat, "target": "x"}])
    lines(folder / "done.jsonl", [{"completion": "red", "target": "x"}])
    rows = [{"prompt": "cat", "target": "x"}, {"prompt": "the red dog", "target": "xx"}]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    (folder / "arrow").mkdir()
    next((folder / "saved").glob("*.arrow")).rename(folder / "arrow" / "train.arrow")
    (folder / "run.yaml").write_text("population_size: 2\n")
    short = {"population_size": 2, "max_steps": 1, "engine": "fake", "disable_tqdm": True}
    ESTrainer(
        str(folder / "model"), vowels, ESConfig(output_dir=str(folder / "finished"), **short), rows
    ).train()
    return folder


def vowels(completions, **columns):
    return [float(sum(map(text.count, "aeiou"))) for text in completions]


RUN = [
    "--max_steps",
    "1",
    "--max_completion_length",
    "3",
    "--dtype",
    "float32",
    "--reward_workers",
    "0",
    "--disable_tqdm",
    "--seed",
    "1",
]
REWARDS = ["--reward_funcs", "conciseness_reward"]
MODEL = ["--model_name_or_path", "model", "--config", "run.yaml"]
COMMANDS = {
    "train": [
        "train",
        *MODEL,
        "--dataset_name",
        "chat.jsonl",
        *REWARDS,
        *RUN,
        "--eval_on_start",
        "--eval_dataset_name",
        "text.jsonl",
    ],
    "eval": [
        "eval",
        "--model",
        "model",
        "--base",
        "base",
        "--kl",
        "--dataset_name",
        "text.jsonl",
        "--dataset_test_split",
        "train",
        *REWARDS,
        *RUN,
    ],
    "plan": ["plan", *MODEL],
    "score": ["score", *REWARDS, "--completions", "done.jsonl"],
    "train on a folder": ["train", *MODEL, "--dataset_name", "arrow", *REWARDS, *RUN],
    "train on a hub's data": ["train", *MODEL, "--dataset_name", "no/such", *REWARDS, *RUN],
    "train a hub's model": [
        "train",
        "--model_name_or_path",
        "no/such",
        "--dataset_name",
        "text.jsonl",
        *REWARDS,
        *RUN,
    ],
    "replay": ["replay", "finished", "--step", "1", "--output", "replayed"],
    "tasks": ["tasks"],
    "new-task": ["new-task", "mine"],
}


LOCAL = [name for name in COMMANDS if "hub" not in name]
# Made for a hub, a model object or a function of a script alone.
ELSEWHERE = {
    "GenerationConfig.validate",
    "PreTrainedModel.save_pretrained",
    "PreTrainedTokenizerFast.save_pretrained",
    "HfApi",
}
ELSEWHERE |= {"snapshot_download", "dumps", "PreTrainedTokenizerFast.convert_ids_to_tokens"}


def replace(monkeypatch, call):
    """Let the library call `module:name` fail."""
    owner, _, name = call.replace(":", ".").rpartition(".")
    module = call.partition(":")[0]
    monkeypatch.setattr(
        pkgutil.resolve_name(f"{module}:{owner[len(module) + 1 :]}" if owner != module else module),
        name,
        fail,
    )


@pytest.fixture
def there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ESTUNE_TRACEBACK", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "base").symlink_to(folder / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("call", CALLS)
def test_no_command_shows_a_traceback_whatever_a_library_raises(call, there, monkeypatch, capsys):
    replace(monkeypatch, call)
    failed = []
    for name, command in COMMANDS.items():
        status = main([*command, "--output_dir", name] if command[0] == "train" else command)
        err = capsys.readouterr().err
        assert "Traceback" not in err, (name, err)
        assert "unexpected" not in err, (name, err)
        assert status in (0, 1, 2)
        assert all(len(line) < 700 for line in err.splitlines())
        if status:
            failed.append(name)
            assert any(line.startswith("estune: ") for line in err.splitlines())
    assert (
        set(failed) & set(LOCAL) or call.partition(":")[2] in ELSEWHERE
    )  # else the seam has moved, and nothing was tried


@pytest.mark.parametrize("call", CALLS)
def test_from_python_only_errors_of_our_own_are_raised(call, there, monkeypatch):
    from transformers import AutoModelForCausalLM

    given = AutoModelForCausalLM.from_pretrained("model")
    replace(monkeypatch, call)
    chat = [{"prompt": [{"role": "user", "content": "what is red"}], "target": "x"}]
    config = ESConfig(
        population_size=2,
        max_steps=1,
        max_completion_length=3,
        dtype="float32",
        reward_workers=0,
        disable_tqdm=True,
    )
    for model, tokenizer in ("model", None), (given, make_tokenizer()):
        with suppress(EstuneError):
            trainer = ESTrainer(model, lengths, config, chat, chat, processing_class=tokenizer)
            for act in (trainer.train, trainer.evaluate, trainer.save_model, trainer.push_to_hub):
                with suppress(EstuneError):
                    act()


def lengths(completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def test_the_guard_says_what_failed_why_and_what_to_do():
    with (
        pytest.raises(ModelError) as caught,
        guarded(ModelError, "model: it does not load", "give another"),
    ):
        fail()
    assert (
        str(caught.value)
        == "model: it does not load (Strange: the library has its own ideas); give another"
    )
    assert isinstance(caught.value.__cause__, Strange)


def test_the_guard_lets_our_own_errors_and_a_full_disk_pass():
    own, full = EstuneError("ours"), OSError(errno.ENOSPC, "No space left on device")
    for error in (own, full):
        with pytest.raises(type(error)) as caught, guarded(ModelError, "model: it does not load"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("weight"), "KeyError: 'weight'"),
        (ValueError(), "ValueError"),
        (ValueError("bad"), "ValueError: bad"),
        (ValueError("the heads do not divide the width."), "the heads do not divide the width"),
        (Strange("a b c d e"), "Strange: a b c d e"),
    ],
)
def test_a_reason_names_the_kind_where_the_words_do_not_explain_themselves(error, said):
    assert reason(error) == said


@pytest.mark.parametrize("debug", [["--debug"], []])
def test_debug_shows_the_traceback_with_the_librarys_own_error(debug, there, monkeypatch, capsys):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    if not debug:
        monkeypatch.setenv("ESTUNE_TRACEBACK", "1")
    assert main([*COMMANDS["plan"], *debug]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "Strange: the library" in err
    assert err.splitlines()[-1].startswith("estune: ")


def test_debug_may_stand_before_the_command(there, monkeypatch, capsys):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    assert main(["--debug", *COMMANDS["plan"]]) == 2
    assert "Strange: the library" in capsys.readouterr().err


def test_debug_shows_causes_that_the_line_leaves_out(there, capsys):
    assert main(["train", *MODEL, "--max_steps", "many", "--debug"]) == 2
    assert "ValidationError" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_is_one_line_that_says_where(there, monkeypatch, capsys):
    monkeypatch.setattr("estune.run.estimate.shape_of", fail)
    assert main(COMMANDS["plan"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("estune: unexpected Strange at ")
    assert "test_seams.py:" in err
    assert err.count("\n") == 1


# processes that were launched


def test_a_launcher_without_the_workers_for_it_is_told_so(
    mini, refused, data, monkeypatch, in_a_folder_of_its_own
):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    line = refused(
        "train", "--model_name_or_path", mini, "--dataset_name", data, *REWARDS, "--engine", "fake"
    )
    assert "started 2 processes" in line
    assert "set workers: accelerate" in line
    assert not Path("estune-output").exists()


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "4", "RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}],
)
def test_the_environment_of_a_job_scheduler_is_no_launcher(environment, monkeypatch):
    from estune.workers.launched_process import find_launched_process

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_launched_process("local") is None


# what reward functions return


@pytest.mark.parametrize(("index", "wanted"), [([10, 11], [1.0, 2.0]), ([1, 0], [1.0, 2.0])])
def test_rewards_of_a_table_are_taken_by_position(index, wanted):
    import pandas

    found = _returned(pandas.Series([1.0, 2.0], index=index))
    assert isinstance(found, Returned) and found.values == wanted


def test_rewards_that_cannot_be_read_are_a_failure_of_the_function():
    class Lazy:
        def __len__(self):
            return 2

        def __getitem__(self, place):
            return fail()

    found = _returned(Lazy())
    assert isinstance(found, Failure) and "which cannot be read (Strange: " in found.reason


def _returned(value):
    loop = asyncio.new_event_loop()
    found = call_function(
        lambda completions: value,
        [Call({"completions": ["a", "b"]}, {}, (), 2)],
        loop,
        concurrency=1,
        timeout=1,
    )
    loop.close()
    return found[0]
