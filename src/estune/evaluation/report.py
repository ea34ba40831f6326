"""Results as tables for people and as flat rows for programs. docs/evaluation.md says what each figure means."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import divided, exponent, scaled
from estune.evaluation import statistics
from estune.evaluation.divergence import Divergence
from estune.evaluation.models import Result
from estune.evaluation.statistics import Estimate
from estune.monitor.held_out import HeldOut
from estune.monitor.metrics import Tally, as_json

Table = tuple[Sequence[str], list[list[str]]]  # head, rows
_SHAPE = ("tokens", "chars", "empty", "clipped", "repeat", "distinct")


@dataclass(frozen=True)
class Rules:
    """What counts as a success, which pass@k are wanted, and the seed of what is drawn."""

    threshold: float = 1.0
    ks: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """A measure of the base and of a tuned model on the same prompts."""

    measure: str
    base: float
    tuned: float
    difference: Estimate
    test: statistics.Test


def measures(result: Result, rules: Rules) -> dict[str, Estimate]:
    """The reward and success of a model in an exam, by the name of the figure."""
    known = result.rewards[~np.isnan(result.rewards)]
    found = {
        "reward": statistics.mean(known, seed=rules.seed),
        "greedy pass@1": statistics.wilson(int((known >= rules.threshold).sum()), known.size),
    }
    if result.samples:
        drawn = result.drawn_rewards
        found[f"mean@{result.samples}"] = statistics.mean(_row_means(drawn), seed=rules.seed)
        for k in rules.ks:
            chances = [_pass_at_k(row[~np.isnan(row)] >= rules.threshold, k) for row in drawn]
            found[f"pass@{k}"] = statistics.mean(chances, seed=rules.seed)
    return found


def shape(held: HeldOut) -> dict[str, float]:
    """What the answers look like, so that a reward that is hacked shows: all are means or fractions over completions."""
    tally, count = Tally.of(held.completions), len(held.completions)
    characters = float(np.mean([len(completion.text) for completion in held.completions]))
    values = (
        float(tally.lengths.mean()),
        characters,
        *(part / count for part in (tally.empty, tally.clipped, tally.repetition, tally.distinct)),
    )
    return dict(zip(_SHAPE, values, strict=True))


def compare(base: Result, tuned: Result, rules: Rules) -> list[Comparison]:
    """The two models' rewards in an exam, prompt by prompt: greedy ones, and the mean over samples where some were drawn."""
    pairs = {"reward": (base.rewards, tuned.rewards)}
    if base.samples and tuned.samples:
        pairs[f"mean@{tuned.samples}"] = (
            _row_means(base.drawn_rewards),
            _row_means(tuned.drawn_rewards),
        )
    found = []
    for measure, (before, after) in pairs.items():
        both = ~np.isnan(before) & ~np.isnan(after)
        before, after = before[both], after[both]
        power = exponent(before, after)
        differences = divided(after, power) - divided(before, power)
        test = statistics.sign_flip(differences, seed=rules.seed)
        difference = statistics.mean(differences, seed=rules.seed).times(power)
        found.append(Comparison(measure, _mean(before), _mean(after), difference, test))
    return found


def figures_table(results: Sequence[Result], rules: Rules) -> Table:
    """A row a task: estimates over their 95 % intervals."""
    rows = [(result.exam.name, measures(result, rules)) for result in results]
    return ("task", *rows[0][1]), [[name, *map(_interval, found.values())] for name, found in rows]


def shape_table(results: Sequence[Result]) -> Table:
    """A row a task and way of answering: reward, and what the answers look like."""
    rows = []
    for result in results:
        for way, held in (("greedy", result.greedy), ("drawn", result.drawn)):
            if held:
                values = [
                    np.nan if record["reward"] is None else record["reward"]
                    for record in held.records
                ]
                rows.append(
                    [
                        f"{result.exam.name}\n{way}",
                        _number(_mean(values)),
                        *map(_number, shape(held).values()),
                    ]
                )
    return ("task", "reward", *_SHAPE), rows


def comparison_table(found: Mapping[str, Sequence[Comparison]]) -> Table:
    """A row a task and measure."""
    head = ("task", "measure", "base", "tuned", "difference", "p")
    rows = [
        [
            task,
            one.measure,
            _number(one.base),
            _number(one.tuned),
            _interval(one.difference),
            f"{one.test.p:.2g}",
        ]
        for task, comparisons in found.items()
        for one in comparisons
    ]
    return head, rows


def how_tested(found: Mapping[str, Sequence[Comparison]]) -> str:
    """A sentence on where the p-values come from."""
    tests = {one.test.exact for comparisons in found.values() for one in comparisons}
    ways = [
        words
        for exact, words in ((True, "all signs"), (False, "100,000 seeded draws"))
        if exact in tests
    ]
    return f"p: paired sign-flip test over prompts, {' or '.join(ways)}; brackets: 95 % intervals over prompts"


def frontier_table(
    results: Sequence[Result], divergences: Mapping[tuple[str, str], Divergence]
) -> Table:
    """A row a model and task: the reward of what was drawn, against how far the model moved from its base."""
    rows = []
    for result in sorted(results, key=lambda one: (one.exam.name, natural(one.model))):
        moved = divergences[result.model, result.exam.name]
        reward = _mean(result.drawn_rewards.ravel())
        per_token = _with_error(moved.per_token, moved.token_error)
        assert result.drawn is not None
        tokens = _number(shape(result.drawn)["tokens"])
        kl = _with_error(moved.per_completion, moved.error)
        rows.append([result.model, result.exam.name, _number(reward), kl, per_token, tokens])
    return ("model", "task", "reward", "KL", "KL a token", "tokens"), rows


def flat(
    result: Result, rules: Rules, compared: Sequence[Comparison], moved: Divergence | None
) -> dict[str, Any]:
    """All figures of a model in an exam, one column each, for CSV and JSON."""
    row: dict[str, Any] = {
        "model": result.model,
        "task": result.exam.name,
        "prompts": len(result.exam.rows),
    }
    for name, one in measures(result, rules).items():
        row |= {name: one.value, f"{name} low": one.low, f"{name} high": one.high}
    for way, held in (("greedy", result.greedy), ("drawn", result.drawn)):
        row |= {f"{way} {name}": value for name, value in shape(held).items()} if held else {}
    for other in compared:
        about = other.difference
        row |= {
            f"{other.measure} base": other.base,
            f"{other.measure} difference": about.value,
            f"{other.measure} p": other.test.p,
        }
        row |= {
            f"{other.measure} difference low": about.low,
            f"{other.measure} difference high": about.high,
        }
    if moved:
        row |= {
            "kl": moved.per_completion,
            "kl error": moved.error,
            "kl a token": moved.per_token,
            "kl a token error": moved.token_error,
        }
    return as_json(row)


def records(result: Result) -> list[dict[str, Any]]:
    """One record an answer: model, task, the sample's number (None: greedy), length in tokens, and what `evaluation.records` tells."""
    found = []
    for held, samples in ((result.greedy, 0), (result.drawn, result.samples)):
        for index, record in enumerate(held.records if held else []):
            assert held is not None
            sample = index % samples if samples else None
            about = {
                "model": result.model,
                "task": result.exam.name,
                "sample": sample,
                "length": len(held.completions[index].ids),
            }
            found.append(about | record)  # a column of the data's own under such a name wins
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts checkpoint-2 before checkpoint-10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)
    ]


def _pass_at_k(successes: NDArray[np.bool_], k: int) -> float:
    """NaN where too few of a prompt's samples got a reward."""
    return (
        statistics.pass_at_k(successes.size, int(successes.sum()), k)
        if successes.size >= k
        else math.nan
    )


def _row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([_mean(row) for row in values])


def _mean(values: Any) -> float:
    array = np.asarray(values, np.float64)
    array = array[~np.isnan(array)]
    return scaled(np.mean, array) if array.size else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _interval(one: Estimate) -> str:
    return f"{_number(one.value)}\n[{_bound(one.low)}, {_bound(one.high)}]"


def _bound(value: float) -> str:
    return _number(value) if math.isnan(value) or abs(value) >= 10 else f"{value:.2g}"


def _with_error(value: float, error: float) -> str:
    return f"{_number(value)}\n± {_number(error)}"
