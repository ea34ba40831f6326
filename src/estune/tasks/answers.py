r"""Where in a completion the answer stands: the last `<answer>` block, or the last `\boxed{}`.

By position only, so that any text takes linear time: a regular expression would go back over it for every tag that opens.
"""

from __future__ import annotations

import re

OPEN = "<answer>"
CLOSE = "</answer>"
_SPACED = re.compile(r"\\boxed\s+\{")
_FORMULA_END = re.compile(r"\$|\\\)|\\\]|[.;](?=\s)")


def last_block(text: str) -> tuple[int, int] | None:
    """Return where the inside of the last answer block starts and ends; it holds neither of the two tags."""
    opened = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    if opened < 0:
        return None
    start = opened + len(OPEN)
    return start, text.index(CLOSE, start)


def last_boxed(text: str) -> str | None:
    r"""Return what stands between the braces of the last \boxed{}; None where there is none or it never closes."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth, escaped = 1, False
    for end, letter in enumerate(rest if found else ""):
        # An escaped brace is a letter of the answer, as in \{1, 2\}, and may stand alone.
        if not escaped:
            depth += (letter == "{") - (letter == "}")
        escaped = letter == "\\" and not escaped
        if depth == 0:
            return rest[:end]
    return None


def boxed_argument(text: str) -> str | None:
    r"""Return what the last \boxed holds: in braces, or without them what follows, as in `$\boxed 2$` or `$\boxed\frac{1}{3}$`."""
    text = _SPACED.sub(r"\\boxed{", text)
    _, found, rest = text.rpartition(r"\boxed")
    if not found or rest.startswith("{"):
        return last_boxed(text)
    formula, *after = _FORMULA_END.split(rest, maxsplit=1)
    if not after:  # then only the first word is certain to belong to the answer
        formula = next(iter(formula.split()), "")
    return formula.strip().rstrip(".,;") or None
