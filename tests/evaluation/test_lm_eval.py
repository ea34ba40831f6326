"""lm-evaluation-harness runs on θ of a run, and its answers look as they should."""

import sys

import numpy as np
import pytest
from helpers import lines

from estune.cli.main import main
from estune.common.types import Completion
from estune.monitor.metrics import Tally, completion_metrics, repetition

FAKE = ["--engine", "fake", "--max_eval_samples", "4"]


def evaluate(*arguments) -> int:
    return main(["eval", *map(str, arguments)])


# what answers look like


def test_repetition_is_the_part_of_four_grams_that_were_there_before():
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 13) == pytest.approx(0.9)
    ids = np.random.default_rng(0).integers(0, 3, 200).tolist()
    grams = list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    assert repetition(ids) == pytest.approx(1 - len(set(grams)) / len(grams))


def test_metrics_show_answers_that_are_all_the_same_or_repeat_themselves():
    same = Tally.of([Completion("a", [7] * 13, False)] * 4)
    unlike = Tally.of([Completion(text, [1, 2, 3, 4, 5], False) for text in "abcd"])
    metrics = completion_metrics([same, unlike])
    assert metrics["completions/repetition"] == pytest.approx(0.45)
    assert metrics["completions/distinct"] == pytest.approx((0.25 + 1) / 2)


# lm-evaluation-harness

HARNESS = """task: estune_words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["red", "blue"]
doc_to_target: label
metric_list: [{metric: acc}]
"""


def test_without_the_harness_the_line_names_the_pip_command(mini, refused, monkeypatch):

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert 'lm-eval: it is not installed; pip install "estune[lm-eval]"' in refused(
        "eval", "--model", mini, "--lm-eval", "arc"
    )


@pytest.mark.slow
def test_the_harness_runs_a_task_of_ones_own_without_a_network(tiny, tmp_path, capsys):
    rows = lines(
        tmp_path / "words.jsonl",
        [{"question": "the sky is", "label": 1}, {"question": "the cat is", "label": 0}],
    )
    (tmp_path / "words.yaml").write_text(HARNESS.replace("DATA", str(rows)))
    flags = ["--dtype", "float32", "--lm-eval-include-path", str(tmp_path)]
    assert evaluate("--model", tiny, "--lm-eval", "estune_words", *flags) == 0
    out = capsys.readouterr().out
    assert "estune_words" in out and "acc" in out
    assert evaluate("--model", tiny, "--lm-eval", "estune_wrods", *flags) == 2
    assert "it has no task 'estune_wrods'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_harness_task_whose_data_are_elsewhere_is_one_line(tiny, tmp_path, refused):
    (tmp_path / "words.yaml").write_text(HARNESS.replace("DATA", "/nowhere/words.jsonl"))
    flags = ["--dtype", "float32", "--lm-eval-include-path", tmp_path, "--lm-eval", "estune_words"]
    assert "lm-eval: estune_words cannot be run" in refused("eval", "--model", tiny, *flags)
