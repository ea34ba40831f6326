r"""Where in a completion the answer stands: the last `<answer>` block, or the last `\boxed{}`.

By position only, so that any text takes linear time: a regular expression would go back over it for every tag that opens.
"""

from __future__ import annotations

OPEN = "<answer>"
CLOSE = "</answer>"


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
