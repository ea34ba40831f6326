"""The numbers that `estune eval` reports; docs/evaluation.md gives the formula of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from estune.common.moments import divided, exponent, known, mean
from estune.evaluation import statistics
from estune.evaluation.divergence import Divergence
from estune.evaluation.exams import ExamResult
from estune.evaluation.statistics import Array, Estimate, SignFlipTest
from estune.monitor.metrics import Tally, as_json
from estune.monitor.theta_evaluation import ThetaEvaluation
from estune.strategy.shaping import pass_chance

FORM = ("tokens", "chars", "empty", "clipped", "repeat", "distinct")


@dataclass(frozen=True)
class Rules:
    """How rewards are turned into numbers to report.

    threshold: a reward of at least this is a success.
    ks: which pass@k to compute.
    seed: for bootstrap and tests.
    """

    threshold: float = 1.0
    ks: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class PairedComparison:
    """The mean of a measure for the base and for a tuned model on the same prompts."""

    measure: str
    base: float
    tuned: float
    difference: Estimate
    test: SignFlipTest


def measures(result: ExamResult, rules: Rules) -> dict[str, Estimate]:
    """Return the mean reward and the success rates of a model in an exam, by name."""
    rewards = known(result.rewards)
    passes = int((rewards >= rules.threshold).sum())
    found = {
        "reward": statistics.mean(rewards, seed=rules.seed),
        "greedy pass@1": statistics.wilson(passes, rewards.size),
    }
    if result.samples:
        drawn = result.drawn_rewards
        found[f"mean@{result.samples}"] = statistics.mean(row_means(drawn), seed=rules.seed)
        for k in rules.ks:
            chances = [_pass_at_k(known(row) >= rules.threshold, k) for row in drawn]
            found[f"pass@{k}"] = statistics.mean(chances, seed=rules.seed)
    return found


def form(evaluation: ThetaEvaluation) -> dict[str, float]:
    """Return what completions look like: length and fractions, under the names in `FORM`.

    They show if a model gets reward by odd completions, such as empty or repetitive ones.
    """
    completions = evaluation.completions
    tally = Tally.of(completions)
    counts = (tally.empty, tally.clipped, tally.repetition, tally.distinct)
    characters = float(np.mean([len(completion.text) for completion in completions]))
    fractions = [count / len(completions) for count in counts]
    values = [float(tally.lengths.mean()), characters, *fractions]
    return dict(zip(FORM, values, strict=True))


def compare(base: ExamResult, tuned: ExamResult, rules: Rules) -> list[PairedComparison]:
    """Compare two models' rewards in an exam, prompt by prompt.

    The greedy rewards are compared, and the mean rewards of samples if both models have samples.
    """
    found = [_compared("reward", base.rewards, tuned.rewards, rules)]
    if base.samples and tuned.samples:
        name = f"mean@{tuned.samples}"
        means = row_means(base.drawn_rewards), row_means(tuned.drawn_rewards)
        found.append(_compared(name, *means, rules))
    return found


def flat(
    result: ExamResult,
    rules: Rules,
    comparisons: Sequence[PairedComparison],
    moved: Divergence | None,
) -> dict[str, Any]:
    """Return all numbers of a model in an exam as one row, column → value, for CSV and JSON."""
    exam = result.exam
    row: dict[str, Any] = {"model": result.model, "task": exam.name, "prompts": len(exam.rows)}
    for name, one in measures(result, rules).items():
        row |= {name: one.value, f"{name} low": one.low, f"{name} high": one.high}
    for way, evaluation in result.evaluations.items():
        row |= {f"{way} {name}": value for name, value in form(evaluation).items()}
    for compared in comparisons:
        name = compared.measure
        difference = compared.difference
        row |= {f"{name} base": compared.base, f"{name} difference": difference.value}
        row[f"{name} p"] = compared.test.p
        row[f"{name} difference low"] = difference.low
        row[f"{name} difference high"] = difference.high
    if moved:
        row |= {"kl": moved.per_completion, "kl error": moved.error}
        row |= {"kl a token": moved.per_token, "kl a token error": moved.token_error}
    return as_json(row)


def records(result: ExamResult) -> list[dict[str, Any]]:
    """Return one record per completion: that of the evaluation, with model, task and length.

    `sample` is the number of a drawn completion among those of its prompt, and None for a greedy
    one.
    """
    found = []
    for way, evaluation in result.evaluations.items():
        pairs = zip(evaluation.completions, evaluation.records, strict=True)
        for index, (completion, record) in enumerate(pairs):
            about = {
                "model": result.model,
                "task": result.exam.name,
                "sample": None if way == "greedy" else index % result.samples,
                "length": len(completion.ids),
            }
            found.append(about | record)  # a column of the dataset that has such a name is kept
    return found


def row_means(values: Array) -> Array:
    """Return the mean of each row without its NaN, (P, n) → (P,)."""
    return np.array([mean(known(row)) for row in values])


def _compared(measure: str, base: Array, tuned: Array, rules: Rules) -> PairedComparison:
    """Compare the values of two models on the prompts for which both have one."""
    both = ~np.isnan(base) & ~np.isnan(tuned)
    before = base[both]
    after = tuned[both]
    power = exponent(before, after)
    differences = divided(after, power) - divided(before, power)
    test = statistics.sign_flip(differences, seed=rules.seed)
    difference = statistics.mean(differences, seed=rules.seed).times(power)
    return PairedComparison(measure, mean(before), mean(after), difference, test)


def _pass_at_k(passes: Any, k: int) -> float:
    """Return a prompt's pass@k; NaN if fewer than k of its completions have a reward."""
    return float(pass_chance(passes.size, int(passes.sum()), k)) if passes.size >= k else np.nan
