"""A frontier of checkpoints weighs what a run gained against what it forgot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import lines, make_model

from estune import ESConfig
from estune.cli.main import main
from estune.common.types import Completion, Sampling
from estune.evaluation.divergence import Likelihood, estimate

FAKE = ["--engine", "fake", "--max_eval_samples", "4"]


def evaluate(*arguments) -> int:
    return main(["eval", *map(str, arguments)])


# the frontier


def likelihood(folder) -> Likelihood:
    return Likelihood(folder, ESConfig(dtype="float32"))


def test_the_likelihood_of_a_completion_is_the_product_of_its_tokens_and_its_end(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt, new = [5, 6, 7], [8, 9]
    logits = model(input_ids=torch.tensor([[*prompt, *new]])).logits[0].log_softmax(-1)
    wanted = [logits[2, 8].item(), logits[3, 9].item(), logits[4, 1].item()]
    reader = likelihood(tiny)
    whole, cut, empty = reader.of(
        [
            (prompt, Completion("", ids, clipped))
            for ids, clipped in ((new, False), (new, True), ([], False))
        ],
        [],
    )
    assert whole == pytest.approx(wanted, abs=1e-5)
    assert cut == pytest.approx(wanted[:2], abs=1e-5)  # the budget ended it, so no end was chosen
    assert len(empty) == 1


@pytest.mark.slow
def test_the_estimate_agrees_with_the_kl_divergence_summed_over_the_whole_vocabulary(
    tiny, tmp_path
):
    from helpers import transformers_engine

    other = make_model(tmp_path / "other", seed=1)
    samples, prompt = 2000, [5, 6]
    drawn = transformers_engine(tiny).generate(
        [prompt], max_completion_length=1, sampling=Sampling(n=samples)
    )
    pairs = [(prompt, one) for one in drawn]
    moved = estimate(likelihood(tiny).of(pairs, []), likelihood(other).of(pairs, []), 1)
    own, base = (
        likelihood(folder)._model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        for folder in (tiny, other)
    )
    exact = float((own.exp() * (own - base)).sum())
    assert moved.per_completion == pytest.approx(exact, abs=4 * moved.error)
    assert moved.per_token == pytest.approx(moved.per_completion)
    assert 0 < moved.error < 0.2 * exact


def test_the_error_is_over_prompts_not_over_their_samples():
    own = [np.array([value]) for value in (1.0, 1.0, 3.0, 3.0)]
    moved = estimate(own, [np.zeros(1)] * 4, 2)
    assert (moved.per_completion, moved.error) == (2.0, 1.0)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_frontier_has_a_row_a_checkpoint_and_the_base_has_not_moved(tiny, tmp_path, capsys):
    tuned = make_model(tmp_path / "checkpoint-2", seed=1)
    rows = lines(
        tmp_path / "d.jsonl",
        [{"prompt": f"what is {word}", "target": "x"} for word in ("red", "cat", "dog")],
    )
    flags = [
        "--dataset_name",
        rows,
        "--dataset_test_split",
        "train",
        "--reward_funcs",
        "conciseness_reward",
        "--dtype",
        "float32",
    ]
    drawn = ["--max_completion_length", 6, "--num_generations", 3, "--kl", "--figures", "f.json"]
    assert evaluate("--model", tuned, "--base", tiny, *flags, *drawn) == 0
    base, moved = json.loads(Path("f.json").read_text())
    assert (base["kl"], base["kl error"]) == (0.0, 0.0)
    assert moved["kl"] > 0 < moved["kl error"]
    assert f"reward against KL to {tiny}"[:20] in capsys.readouterr().out


def test_kl_between_models_of_unlike_tokenizers_is_refused(tiny, tmp_path, capsys):
    other = shutil.copytree(tiny, tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"cow"'))
    assert evaluate("--model", other, "--base", tiny, "--task", "conciseness", *FAKE, "--kl") == 2
    assert "kl: the tokenizers of" in capsys.readouterr().err
