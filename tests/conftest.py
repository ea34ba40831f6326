"""A tiny real checkpoint with a real tokenizer, made here, so that the fast tests need no download and no hub."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from cli_place import FLAGS, lines

from estune.cli.main import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", "/tmp/estune-tests-datasets")

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "to",
    "and",
    "is",
    "was",
    "what",
    "who",
    "when",
    "where",
    "how",
    "capital",
    "color",
    "sky",
    "blue",
    "red",
    "green",
    "cat",
    "dog",
    "one",
    "two",
    "three",
    "four",
    "x",
    "y",
    "z",
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "user", "assistant", *WORDS]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(
    folder: Path, *, dtype: str = "float32", tied: bool = True, seed: int = 0, **config
) -> Path:
    """Write a random Llama of 20,000 parameters to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | config)).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
    """A checkpoint of 920 parameters: a whole run of it on the fake engine takes a tenth of a second."""
    return make_model(
        tmp_path_factory.mktemp("mini"),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


def short(completions, target, **columns):
    return [-abs(len(text) - len(wanted)) for text, wanted in zip(completions, target, strict=True)]


@pytest.fixture
def make_trainer(mini, tmp_path, rows):
    """A trainer of `mini` on the fake engine, four steps of four members; every argument can be given otherwise."""
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
    """The working folder is empty, and what a command adds to the import path is taken off again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def refused(capsys):
    """Run the command and return its one line on standard error, having checked that it is one and the status is 2."""

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


@pytest.fixture(params=["bubblewrap", "sandlock"])
def sandbox(request):
    """Each sandbox in turn; skips one that this machine lacks."""
    from boxes import made

    return made(request.param)


@pytest.fixture(scope="session")
def run_as():
    """A way to run the scripts of tests/sandbox as root and as an unprivileged user."""
    from boxes import Runner

    with tempfile.TemporaryDirectory(prefix="estune-user-", dir="/tmp") as folder:
        yield Runner(folder)
