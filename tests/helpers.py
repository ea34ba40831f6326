"""What the tests share: tiny models, command lines, small runs, and how to read what a run left."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from estune import ESConfig
from estune.common.types import Completion
from estune.engines.device import engine_device, engine_dtype
from estune.engines.transformers import TransformersEngine, open_engine
from estune.errors import RewardError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Header, Step
from estune.theta.parameters import layout

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GGUF = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"

# Tiny models


WORDS = (
    "the a of in to and is was what who when where how capital color sky"
    " blue red green cat dog one two three four x y z"
).split()

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


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


FAMILIES = yaml.safe_load((TESTS / "families.yaml").read_text())


def make_family(folder: Path, family: str = "qwen3_moe", **config) -> Path:
    """Write a random fp32 model of a family in families.yaml to `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = FAMILIES["usual"] | FAMILIES[family] | config
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dtype == torch.float32 and "inv_freq" not in name:
            tensor.data.normal_(1.0 if "norm" in name else 0.0, 0.1)
    model.float().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def short(completions, target, **columns):
    return [-abs(len(text) - len(wanted)) for text, wanted in zip(completions, target, strict=True)]


# The command line


COUNTDOWN = {"numbers": [3, 5, 2], "target": 13}

FULL = COUNTDOWN | {"completion": "3*5-2 is 13</think>\n<answer>3 * 5 - 2</answer>"}

BARE = COUNTDOWN | {"completion": "<answer>3*5-2</answer>"}

FLAGS = (
    "--engine fake --population_size 2 --max_steps 2 --save_steps 1"
    " --sigma 0.02 --batch_size 2 --reward_workers 0"
).split()


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_file(path: Path = Path("run.yaml"), **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def train_on(model, data, *more) -> list[str]:
    """The arguments of a small run on the fake engine; later flags win."""
    where = [
        "--model_name_or_path",
        model,
        "--dataset_name",
        data,
        "--reward_funcs",
        "conciseness_reward",
        "--output_dir",
        "out",
    ]
    return list(map(str, ["train", *where, *FLAGS, *more]))


def journal(folder="out") -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]


def settings_of(folder="out") -> dict:
    return journal(folder)[0]["config"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def module(text: str, folder: Path) -> str:
    """Write a module to the working folder and return its name, which no other test uses."""
    name = f"rewards_{folder.name}".replace("-", "_")
    Path(f"{name}.py").write_text(text)
    return name


# What two runs of one config must share


EVALUATING = {
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_on_start": True,
    "metric_for_best_model": "reward",
}


def repeatable_steps(folder):
    """The journal's steps without timings, chain and checksum, which differ from run to run."""
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]
    return [
        {
            name: value
            for name, value in record.items()
            if name not in ("notes", "chain", "checksum")
        }
        for record in records
    ]


def repeatable_metrics(folder):
    """metrics.jsonl without timings, and so without checksums."""
    timed = ("seconds", "per_second", "step_time", "runtime", "checksum")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not name.endswith(timed)}
        for record in records
    ]


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def result_of(folder, last=4):
    """All that two runs of one config must share."""
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    leftovers = sorted(path.name for path in folder.rglob(".*.tmp"))
    snapshot = (folder / "theta" / f"step-{last}.safetensors").read_bytes()
    return {
        "checkpoints": {name: files_of(folder / name) for name in checkpoints},
        "steps": repeatable_steps(folder),
        "metrics": repeatable_metrics(folder),
        "theta": (sorted(path.name for path in (folder / "theta").iterdir()), snapshot),
        "completions": files_of(folder / "completions")
        if (folder / "completions").exists()
        else {},
        "card": (folder / "README.md").read_text().replace(folder.name, "RUN"),
        "leftovers": leftovers,
    }


def assert_same(folder, other, last=4):
    ours, theirs = result_of(folder, last), result_of(other, last)
    for part in ours:
        assert ours[part] == theirs[part], part


def interrupted(make_trainer, member=13, **settings):
    """The folder of a run that failed in step 4, with checkpoint-2 and step 3 in the journal."""
    calls = iter(range(10**6))

    def dying(completions, target, **columns):
        if next(calls) == member:
            raise OSError("the judge is gone")
        return short(completions, target)

    dying.__name__ = "short"
    trainer = make_trainer(reward_funcs=dying, on_reward_error="raise", **settings)
    with pytest.raises(RewardError):
        trainer.train()
    return trainer.folder.path


# What a trainer left


def folder_of(trainer):
    return trainer.folder.path


def metrics_of(trainer):
    """The lines of metrics.jsonl without their checksums."""
    lines = [
        json.loads(line) for line in (folder_of(trainer) / "metrics.jsonl").read_text().splitlines()
    ]
    return [{name: value for name, value in line.items() if name != "checksum"} for line in lines]


def steps_of(trainer):
    return [
        json.loads(line) for line in (folder_of(trainer) / "journal.jsonl").read_text().splitlines()
    ][1:]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def same(these, those):
    return these.keys() == those.keys() and all(
        torch.equal(these[name], those[name]) for name in these
    )


def checkpoints_of(trainer):
    return sorted(int(path.name.split("-")[1]) for path in folder_of(trainer).glob("checkpoint-*"))


# Journals


def header(**changes):
    return Header(
        **{"format": 1, "model": "some/model", "digest": "00" * 16, "config": {"sigma": 0.1}}
        | changes
    )


def step(number, **changes):
    usual = {
        "step": number,
        "seeds": [1, 2**64 - 1],
        "coefficients": [0.1, -0.1],
        "rewards": [1.0, 0.5],
        "sigma": 0.1,
        "noise": "iid",
    }
    return Step(**usual | changes)


def signed(record):
    """A line with a right checksum, made by the contract and not by the product."""
    body = json.dumps(record)
    checksum = hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
    return f'{body[:-1]}, "checksum": "{checksum}"}}\n'


def written(records):
    """The lines of a journal of format 2, made by the contract: each chained to the one before."""
    lines = []
    for record in records:
        record = {
            name: value for name, value in record.items() if name not in ("chain", "checksum")
        }
        if lines:
            link = hashlib.blake2b(
                (lines[-1] + json.dumps(record)).encode(), digest_size=16
            ).hexdigest()
            record |= {"chain": link}
        lines.append(signed(record))
    return lines


def lines_of(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


# The transformers engine


PROMPTS = [
    "what is the color of the sky",
    "cat",
    "how",
    "where is the red dog x y z one two three",
    "who",
]


def transformers_engine(folder, **settings) -> TransformersEngine:
    config = ESConfig(**{"dtype": "float32"} | settings)
    found = layout(open_checkpoint(folder))
    where = engine_device(config), engine_dtype(config)
    return open_engine(folder, found, config, *where)


def generated(one: TransformersEngine, prompts=PROMPTS, budget=12):
    return one.generate(prompts, max_completion_length=budget)


# Rewards of four completions, one of them guilty


MARKED_ROWS = [{"prompt": f"p{i}", "mark": str(i)} for i in range(4)]

ONE_GUILTY = [Completion(text, [1], False) for text in ("fine", "guilty", "fine", "fine")]


def scored(rewards, answers=ONE_GUILTY):
    return rewards.score(MARKED_ROWS[: len(answers)], answers, first=False)


# Triton


def triton_environment(*, interpret: bool) -> dict[str, str]:
    """One in which Triton is found: the Makefile installs it apart from the rest."""
    paths = [str(Path(sys.prefix) / "triton"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": os.pathsep.join(paths),
    }
