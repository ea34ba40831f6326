"""Scores of reasoning-gym's own verifiers, on text that nobody vouches for.

Some verifiers hand the model's answer to `eval`, openly or inside sympy's parser. InProcess the first read it as a literal
instead, and the others see it only when it looks like a formula and nothing else: without `Integral`, too, whose
derivative is the question itself. What takes a verifier too long is ended with the process that it runs in, and earns 0.

Other verifiers skip what they do not know, so that they would pay for anything around a right answer. These see only answers
in the form that the question asks for, or the score shrinks with what is too much.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from estune.errors import ConfigError, DataError
from estune.rewards.marks import bounds_itself
from estune.rewards.processes.limited import MOST, Limited, graded, most_seconds
from estune.tasks.answers import last_block
from estune.tasks.base import LogMetric, TextOrMessages, completion_text, log_mean

MAX_LENGTH = 20_000  # characters of an answer; the longest right ones have some 2,000

# Verifiers that call `eval` on the answer (bitwise_arithmetic: on the entry).
_EVALUATING = (
    "algorithmic.string_insertion",
    "algorithmic.spiral_matrix",
    "algorithmic.binary_matrix",
    "games.n_queens",
)
_EVALUATING_ENTRY = ("algorithmic.number_sorting",)

# Verifiers that give the answer to sympy's parser, which evaluates it as Python after adding some names.
# One character a round, so that matching takes linear time.
_SUM = re.compile(r"(?:[0-9](?![0-9]{12})|[-+/() .]|\*(?!\*)){1,500}")
_NAMES = (
    "exp|log|ln|sqrt|sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|asinh|acosh|atanh|pi|Abs"
)
_FORMULA = re.compile(
    rf"(?:(?<![\w.])(?:(?:{_NAMES})(?=\()|pi\b|[a-zA-Z]\b(?!\())|[0-9](?![0-9]{{12}})|[-+/() .*^]){{1,2000}}"
)
# Powers that may not end: of powers, and with an exponent of four digits.
_POWER = re.compile(r"(?:\*\*|\^)[\s(+-]*(?:[0-9]{4}|\w+[\s)]*(?:\*\*|\^))")
_REAL = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_LOOKS = {
    "countdown": _SUM,
    "puzzle24": _SUM,
    "simple_integration": _FORMULA,
    "intermediate_integration": _FORMULA,
    "polynomial_multiplication": _FORMULA,
    # Verifiers that read the beginning of an answer, or the characters in it that they know.
    "advanced_geometry": re.compile(r"[^,]*(?:,[^,]*)?"),
    "fraction_simplification": re.compile(
        r"[\s$]*(?:\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)[\s$]*"
    ),
    "kakurasu": re.compile(r"[01\s,\[\]]+"),
    "polynomial_equations": re.compile(rf"{_REAL}(?:,{_REAL})*"),
    "quantum_lock": re.compile(r"[A-Ca-c\s,→>-]+"),
    "rubiks_cube": re.compile(r"[A-Za-z']+\d*(?:\s+[A-Za-z']+\d*)*"),
    "rush_hour": re.compile(r"[A-Z][+-]\d+(?:[\s,;]+[A-Z][+-]\d+)*"),
    "sokoban": re.compile(r"[UDLR\s,]+"),
    "survo": re.compile(r"[\d\s]+"),
    "tower_of_hanoi": re.compile(
        r"(?:[-*\d.) \t]*Move disk \d+ from Peg \d+ to Peg \d+[ \t.,;]*(?:[\r\n]+|\Z))+"
    ),
}
# Verifiers that compare as much as the right answer has: what is longer earns in proportion, as in reasoning-gym's own default.
_PREFIX = {
    "figlet_font",
    "knights_knaves",
    "letter_jumble",
    "spell_backward",
    "time_intervals",
    "word_sorting",
}
_NUMBERS = {"gsm_symbolic"}  # its verifier takes the first digits of any text, without their sign
_BROKEN = {
    "game_of_life_halting"
}  # its verifier takes any text for the right one; compared as text here
_BITWISE = re.compile(r"[0-9a-fA-Fx\s()<>&|^~+*-]{1,10000}")


# What is no finite number where it is read as one: nan and inf, also as parts of a complex number, and numbers too large.
_NOT_FINITE = re.compile(r"(?<![\w.])(?:s?nan\d*|inf|infinity)[ij]?(?!\w)", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d_]*\.?[\d_]*(?:e[+-]?[\d_]+)?", re.IGNORECASE)


@bounds_itself(most_seconds)
def gym_reward(
    completions: Sequence[TextOrMessages],
    entry: Sequence[str],
    dataset: Sequence[str],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score the last `<answer>` of each completion from 0 to 1 by the verifier of its dataset.

    The metric `correct` is the share of full scores. A verifier that raises on an answer or takes too long over it scores it 0.

    Raises:
        ConfigError: reasoning-gym is not installed.
        DataError: an entry is not what the dataset made, or there is no such dataset.
    """
    rows = [
        (completion_text(text), one, name, row)
        for row, (text, one, name) in enumerate(zip(completions, entry, dataset, strict=True))
    ]
    scores = graded(rows, _score)
    log_mean(log_metric, "correct", [float(score >= 1) for score in scores])
    return scores


def _score(completion: str, text: str, name: str, row: int) -> float:
    entry, block = decode(text, row), last_block(completion)
    if not _VERIFIED(name, None, None):
        raise DataError(
            f"row {row}: reasoning_gym has no dataset {name!r}; estune tasks reasoning_gym lists them"
        )
    if block is None:
        return 0.0
    answer = completion[slice(*block)].strip()
    if not _is_tame(answer, name, entry):
        return 0.0
    if name in _BROKEN:
        return float(answer == str(entry["answer"]))
    if name in _NUMBERS:
        return float(_real(answer) == _real(str(entry["answer"])) is not None)
    score = min(max(float(_VERIFIED(name, answer, text)), 0.0), 1.0)
    return score * _share(answer, str(entry["answer"])) if name in _PREFIX else score


def verified() -> Callable[[str, str | None, str | None], float]:
    """What scores an answer to an entry by its dataset's verifier, for a process that may be ended in the middle of it.

    Without an answer it says whether there is such a dataset.
    """
    known = datasets()

    def score(name: str, answer: str | None, entry: str | None) -> float:
        if answer is None or entry is None:
            return float(name in known)
        try:
            given = float(_verifier(name).score_answer(answer, decode(entry)))
        except MemoryError:
            raise
        except Exception:  # each verifier has its own ideas of what an answer may be
            return 0.0
        return given if math.isfinite(given) else 0.0

    return score


_VERIFIED = Limited("estune.tasks.gym_scoring:verified", MOST)


def _share(answer: str, right: str) -> float:
    """How much of an answer there would be if it were as long as the right one, without spaces."""
    return min(1.0, len("".join(right.split())) / len("".join(answer.split())))


def _real(text: str) -> float | None:
    """The number that a text is, with `$` and commas between thousands; None where it is no number."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text.strip().removeprefix("$").removesuffix("."))
    return float(plain) if re.fullmatch(_REAL, plain) else None


def _is_tame(answer: str, name: str, entry: dict[str, Any]) -> bool:
    if not answer or len(answer) > MAX_LENGTH:
        return False
    if not _is_finite(answer, str(entry["answer"])):
        return False
    if name == "bitwise_arithmetic":
        return _BITWISE.fullmatch(str(entry["metadata"]["problem"])) is not None
    looks = _LOOKS.get(name)
    return looks is None or (
        looks.fullmatch(answer) is not None and (looks is _SUM or not _POWER.search(answer))
    )


def _is_finite(answer: str, right: str) -> bool:
    """Whether all that could be read as a number is finite; a word of the right answer is a word, such as a name."""
    if _NOT_FINITE.search(answer) and not _NOT_FINITE.search(right):
        return False
    return all(
        number in right or math.isfinite(_read(number)) for number in _NUMBER.findall(answer)
    )


def _read(number: str) -> float:
    try:
        return float(number)
    except ValueError:  # such as 1__2
        return 0.0


@cache
def datasets() -> Mapping[str, Any]:
    """Return reasoning-gym's registry, with `eval` in its verifiers turned into the reading of a literal.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f'reasoning-gym is needed for its tasks ({error}); pip install "estune[gym]"'
        ) from None
    for module in (*_EVALUATING, *_EVALUATING_ENTRY):
        vars(importlib.import_module(f"reasoning_gym.{module}"))["eval"] = ast.literal_eval
    return DATASETS  # type: ignore[no-any-return]


@cache
def _verifier(name: str) -> Any:
    kind, config = datasets()[name]
    return kind(config=config(seed=1, size=1))


def encode(entry: Mapping[str, Any]) -> str:
    """Write an entry as JSON from which `decode` gets it back, with tuples and keys that are no text."""
    return json.dumps(
        _plain(entry), default=str
    )  # a Fraction of gsm_symbolic, which its verifier does not read


def decode(text: str, row: int = 0) -> dict[str, Any]:
    """Read an entry; raises DataError where it is no JSON object with question, answer and metadata."""
    try:
        entry = _restored(json.loads(text))
    except (TypeError, ValueError, KeyError, RecursionError):
        entry = None
    if (
        not isinstance(entry, dict)
        or not {"question", "answer", "metadata"} <= set(entry)
        or not isinstance(entry["metadata"], dict)
    ):
        raise DataError(
            f"row {row}: the entry is no entry of reasoning_gym; use the task's own rows"
        )
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): _plain(one) for key, one in value.items()}
        return {"__pairs__": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_plain(one) for one in value]}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.item() if hasattr(value, "item") else value  # a number of numpy's


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "__tuple__" in value:
        return tuple(_restored(one) for one in value["__tuple__"])
    if "__pairs__" in value:
        return {_restored(key): _restored(one) for key, one in value["__pairs__"]}
    return {key: _restored(one) for key, one in value.items()}
