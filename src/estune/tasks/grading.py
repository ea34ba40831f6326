r"""Whether two mathematical answers are the same, by math-verify, kept from the texts on which it would work for hours.

math-verify stops itself by an alarm signal, which only a process's main thread can set, and whose moment depends on the
machine's load. It is switched off here. What is known to run away is refused by its looks; whatever else does is ended with
the process that it runs in, after seconds of processor time, so that the same text gets the same grade everywhere.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from estune.errors import ConfigError
from estune.rewards.processes.limited import MOST, Limited

MAX_LENGTH = 400  # the longest answers of MATH and OlympiadBench have some 200 characters
MAX_DEPTH = 8  # the parser's time grows by the power of the brackets' depth

# What has no bound on its value or on the time to find it, or no one meaning: large exponents, towers of them, large or nested factorials.
_RUNAWAY = re.compile(
    r"\^\s*[{(]?\s*[-+]?\s*\d{5}"
    r"|\d[\s})]*\^[\s{(]*[-+]?\d+[\s})]*\^"
    r"|\^[^^]*\^[^^]*\^[\s{(]*\d[^^]*\^"
    r"|\d{4}[\s})]*!|![\s})]*!"
    r"|binom[^!]*\d{4}"
    r"|(?<!frac)(?<!frac )(?<!binom )\d \d"  # which the parser would add up
    r"|\\(?:sum|prod|i*int|lim)"  # work that is left undone
    r"|[-+][^()]*[-+][^()]*\)\s*\^\s*\{?\s*\d\d"  # three terms, which are multiplied out
    r"|\)\s*\^\s*\{?\s*\d{3}.*[a-z]|[a-z].*\)\s*\^\s*\{?\s*\d{3}"
)
_THOUSANDS = re.compile(r"(?<=\d)(\\[,;: ]| )(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\d.])(\d+) (\d+)/(\d+)(?!\d)")
_NAN = re.compile(r"[\\{}()$+\-\s]*(?:text|mathrm|operatorname)?[{}\s]*nan[}\s]*", re.IGNORECASE)
_SPACES = re.compile(r"(?<!\w) | (?!\w)")


def same_answer(given: str, reference: str) -> bool:
    """Whether `given` is as an answer what `reference` is: as text, or in value by math-verify.

    Raises:
        ConfigError: math-verify is not installed.
        OverLimitError: it keeps sympy busy.
    """
    if find_spec("math_verify") is None:
        raise ConfigError('math-verify is needed to grade mathematics; pip install "estune[math]"')
    given, reference = _plain(given), _plain(reference)
    if _NAN.fullmatch(given) or _NAN.fullmatch(reference):
        return False  # not a number is no answer
    if _SPACES.sub("", given) == _SPACES.sub("", reference):
        return bool(given)
    return _is_tame(given) and _is_tame(reference) and bool(_SAME_VALUE(given, reference))


_SAME_VALUE = Limited("estune.tasks.grading:same_value", MOST)


def same_value() -> Callable[[str, str], bool]:
    """What compares two tame answers by value, for a process that may be ended in the middle of it."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except Exception as error:  # it, or one of the packages that it needs, may be there and not fit
        raise ConfigError(
            f'math-verify is needed to grade mathematics ({error}); pip install "estune[math]"'
        ) from error
    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns that it has no time limit: on purpose
    config = LatexExtractionConfig()

    @lru_cache(maxsize=4096)  # a population answers the same problems, often alike
    def parsed(text: str) -> tuple[Any, ...]:
        return tuple(parse(f"${text}$", [config], parsing_timeout=None))

    def same(given: str, reference: str) -> bool:
        try:
            return bool(verify(list(parsed(reference)), list(parsed(given)), timeout_seconds=None))
        except MemoryError:
            raise
        except Exception:  # sympy raises a little of everything, RecursionError among it
            return False

    return same


def _plain(text: str) -> str:
    """In the digits that the parser knows, without the signs of math mode, thousands' spaces and a full stop."""
    text = "".join(
        str(unicodedata.decimal(letter, letter)) for letter in text[: 10 * MAX_LENGTH]
    )  # the digits of any script
    text = " ".join(re.sub(r"(\\)?\$", " ", text).split())
    text = _THOUSANDS.sub("", text).replace("°", r"^\circ").rstrip(".")
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _is_tame(text: str) -> bool:
    return (
        0 < len(text) <= MAX_LENGTH
        and text.isprintable()
        and _depth(text) <= MAX_DEPTH
        and not _RUNAWAY.search(text)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for letter in text:
        depth += (letter in "{([") - (letter in "})]")
        deepest = max(deepest, depth)
    return deepest
