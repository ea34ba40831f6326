"""Scores by reasoning-gym's own verifiers, protected from what a model may write.

Some verifiers pass the model's answer to `eval`, directly or inside sympy's parser. The former read
a literal here instead. The latter get the answer only if it looks like a formula, without
`Integral`, whose derivative is the question itself. A verifier that takes too long is ended with
the process that runs it, and the score is 0.

Other verifiers skip what they do not know, so they would pay for any text around a right answer.
They get an answer only in the form that the question asks for, or excess length lowers the score.
"""

import ast
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from estune.errors import ConfigError, DataError
from estune.rewards.marks import bounds_itself
from estune.rewards.processes.limited import MAX_SECONDS, Limited, graded, max_seconds
from estune.tasks.answers import last_block
from estune.tasks.base import LogMetric, TextOrMessages, completion_text, log_mean
from estune.tasks.gym_entries import decode

MAX_LENGTH = 20_000  # characters of an answer; the longest right ones have some 2,000

# Verifiers that call `eval` on the answer.
_EVALUATING = (
    "algorithmic.string_insertion",
    "algorithmic.spiral_matrix",
    "algorithmic.binary_matrix",
    "games.n_queens",
)
_EVALUATING_ENTRY = ("algorithmic.number_sorting",)

# Verifiers that pass the answer to sympy's parser, which evaluates it as Python. The patterns take
# one character per repetition, so that matching takes linear time.
_SUM = re.compile(r"(?:[0-9](?![0-9]{12})|[-+/() .]|\*(?!\*)){1,500}")
_NAMES = (
    "exp|log|ln|sqrt|sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|asinh|acosh|atanh|pi|Abs"
)
_FORMULA = re.compile(
    rf"(?:(?<![\w.])(?:(?:{_NAMES})(?=\()|pi\b|[a-zA-Z]\b(?!\())"
    r"|[0-9](?![0-9]{12})|[-+/() .*^]){1,2000}"
)
# Powers that may run forever: powers of powers, and exponents of four digits.
_POWER = re.compile(r"(?:\*\*|\^)[\s(+-]*(?:[0-9]{4}|\w+[\s)]*(?:\*\*|\^))")
_REAL = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_LOOKS = {
    "countdown": _SUM,
    "puzzle24": _SUM,
    "simple_integration": _FORMULA,
    "intermediate_integration": _FORMULA,
    "polynomial_multiplication": _FORMULA,
    # Verifiers that read only the beginning of an answer, or only the characters they know.
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
# Verifiers that compare only as many characters as the right answer has. A longer answer scores in
# proportion, as in reasoning-gym's default.
_PREFIX = {
    "figlet_font",
    "knights_knaves",
    "letter_jumble",
    "spell_backward",
    "time_intervals",
    "word_sorting",
}
_NUMBERS = {"gsm_symbolic"}  # its verifier reads the first digits of any text, without a sign
_BROKEN = {"game_of_life_halting"}  # its verifier accepts any text, so texts are compared here
_BITWISE = re.compile(r"[0-9a-fA-Fx\s()<>&|^~+*-]{1,10000}")

# Not finite when read as a number: nan and inf, also as parts of a complex number.
_NOT_FINITE = re.compile(r"(?<![\w.])(?:s?nan\d*|inf|infinity)[ij]?(?!\w)", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d_]*\.?[\d_]*(?:e[+-]?[\d_]+)?", re.IGNORECASE)


@bounds_itself(max_seconds)
def gym_reward(
    completions: Sequence[TextOrMessages],
    entry: Sequence[str],
    dataset: Sequence[str],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float]:
    """Score the last `<answer>` of each completion from 0 to 1 by its dataset's verifier.

    The metric `correct` is the share of full scores. An answer on which the verifier raises or
    takes too long scores 0.

    Raises:
        ConfigError: reasoning-gym is not installed.
        DataError: an entry was not made by the dataset, or there is no such dataset.
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
            f"row {row}: reasoning_gym has no dataset {name!r}; "
            "estune tasks reasoning_gym lists them"
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
    """Return the scoring of an answer to an entry; it runs in a process that may be ended.

    Without an answer, it returns whether there is such a dataset.
    """
    known = datasets()

    def score(name: str, answer: str | None, entry: str | None) -> float:
        if answer is None or entry is None:
            return float(name in known)
        try:
            given = float(_verifier(name).score_answer(answer, decode(entry)))
        except MemoryError:
            raise
        except Exception:  # a verifier may raise anything on an answer
            return 0.0
        return given if math.isfinite(given) else 0.0

    return score


_VERIFIED = Limited("estune.tasks.gym_scoring:verified", MAX_SECONDS)


def _share(answer: str, right: str) -> float:
    """Return the right answer's length divided by this one's, at most 1, without spaces."""
    return min(1.0, len("".join(right.split())) / len("".join(answer.split())))


def _real(text: str) -> float | None:
    """Return the value of a number, which may have `$` and thousands' commas, else None."""
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
    if looks is None:
        return True
    return bool(looks.fullmatch(answer)) and (looks is _SUM or not _POWER.search(answer))


def _is_finite(answer: str, right: str) -> bool:
    """Whether all numbers in the answer are finite; words of the right answer are not numbers."""
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
    """Return reasoning-gym's registry; `eval` in its verifiers reads only literals from now on.

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
