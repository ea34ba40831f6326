r"""Find the answer in a completion: the last `<answer>` block, or the last `\boxed{}`.

Text is searched by position, in linear time; a regular expression would scan it again from every
opening tag.
"""

import re

OPEN = "<answer>"
CLOSE = "</answer>"
_SPACED = re.compile(r"\\boxed\s+\{")
_FORMULA_END = re.compile(r"\$|\\\)|\\\]|[.;](?=\s)")


def last_block(text: str) -> tuple[int, int] | None:
    """Return where the content of the last answer block starts and ends; None without a block."""
    opened = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    if opened < 0:
        return None
    start = opened + len(OPEN)
    return start, text.index(CLOSE, start)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{}; None if there is none or it never closes."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    escaped = False
    for end, letter in enumerate(rest if found else ""):
        # An escaped brace belongs to the answer, as in \{1, 2\}, and need not be closed.
        if not escaped:
            depth += (letter == "{") - (letter == "}")
        escaped = letter == "\\" and not escaped
        if depth == 0:
            return rest[:end]
    return None


def boxed_argument(text: str) -> str | None:
    r"""Return the argument of the last \boxed: in braces, or what follows it without them.

    `$\boxed 2$` and `$\boxed\frac{1}{3}$` have an argument without braces.
    """
    text = _SPACED.sub(r"\\boxed{", text)
    _, found, rest = text.rpartition(r"\boxed")
    if not found or rest.startswith("{"):
        return last_boxed(text)
    formula, *after = _FORMULA_END.split(rest, maxsplit=1)
    if not after:  # then only the first word is certain to belong to the answer
        formula = next(iter(formula.split()), "")
    return formula.strip().rstrip(".,;") or None
