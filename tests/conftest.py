"""Fixtures of many rooms. The models are made here, so that the fast tests need no download."""

import os
import sys
from pathlib import Path

import pytest
from helpers import FLAGS, WORDS, lines, make_model, short

from estune.cli.main import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", "/tmp/estune-tests-datasets")


@pytest.fixture(autouse=True)
def modules_of_a_test_end_with_it(tmp_path_factory):
    """Forget the modules that a test wrote and imported, so that another can use their names."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(written):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny fp32 checkpoint with tied embeddings."""
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rows():
    return [
        {"prompt": f"what is {word}", "target": "x" * (5 + i)} for i, word in enumerate(WORDS[:6])
    ]


@pytest.fixture(scope="session")
def mini(tmp_path_factory) -> Path:
    """A checkpoint of 920 parameters, which the fake engine trains in a tenth of a second."""
    return make_model(
        tmp_path_factory.mktemp("mini"),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


@pytest.fixture
def make_trainer(mini, tmp_path, rows):
    """A function that makes a trainer of `mini`: four steps of four members on the fake engine."""
    from estune import ESConfig, ESTrainer

    def make(
        model=mini,
        reward_funcs=short,
        train_dataset=rows[:2],
        eval_dataset=rows[2:4],
        callbacks=(),
        tokenizer=None,
        **settings,
    ):
        usual = {
            "output_dir": str(tmp_path / "run"),
            "engine": "fake",
            "population_size": 4,
            "max_steps": 4,
            "save_steps": 2,
        }
        args = ESConfig(
            **usual | {"sigma": 0.02, "num_completions_to_print": 0, "reward_workers": 0} | settings
        )
        model = str(model) if isinstance(model, Path) else model
        return ESTrainer(
            model, reward_funcs, args, train_dataset, eval_dataset, tokenizer, callbacks
        )

    return make


@pytest.fixture
def undisturbed_plain(make_trainer, tmp_path):
    """The folder of a run with usual settings that nobody disturbed."""
    trainer = make_trainer(output_dir=str(tmp_path / "plain"))
    trainer.train()
    return trainer.folder.path


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Start in an empty working folder, and undo what a command adds to the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def refused(capsys):
    """A function that runs a command, checks that it exits with 2, and returns its one line."""

    def run(*arguments) -> str:
        status = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert err.startswith("estune: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err.strip()

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    """A small dataset file."""
    rows = [
        {"prompt": f"what is {word}", "target": "x" * (5 + i)}
        for i, word in enumerate(["red", "blue", "cat", "dog"])
    ]
    return lines(tmp_path / "data.jsonl", rows)


@pytest.fixture(scope="session")
def finished(mini, tmp_path_factory) -> Path:
    """The folder of a run of three steps that saved a checkpoint after each."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [*FLAGS, "--max_steps", "3", "--output_dir", str(folder)]
    assert main(["train", "--model_name_or_path", str(mini), "--task", "conciseness", *flags]) == 0
    return folder
