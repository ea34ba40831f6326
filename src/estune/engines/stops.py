"""Stop strings: where a completion's tokens first hold one, and the text before it.

Decoding leaves special tokens out, so a stop string that names one (`<|im_end|>`) is looked for in a text that shows them.
"""

import bisect
from collections.abc import Sequence
from typing import Any

from estune.common.guard import guarded
from estune.errors import EngineError


class Stops:
    """The stop strings `strings` in what `tokenizer`, of transformers, decodes."""

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        special = _special_tokens(tokenizer) if strings else set()
        self._tokenizer = tokenizer
        self.strings = list(strings)
        self.special = [string for string in strings if any(token in string for token in special)]
        self.window = (
            max((len(string.encode()) for string in strings), default=0) + 4
        )  # each token adds a byte, but for special ones

    def __bool__(self) -> bool:
        return bool(self.strings)

    def found(self, ids: list[int]) -> bool:
        """Whether there is a stop string in the text of `ids`."""
        return bool(self.strings) and (
            _any_in(self.strings, decoded(self._tokenizer, ids))
            or (
                bool(self.special)
                and _any_in(self.special, decoded(self._tokenizer, ids, special=True))
            )
        )

    def first(self, ids: list[int]) -> int | None:
        """How many of `ids` it takes until the first stop string is whole; None where there is none."""
        if not self.found(ids):
            return None
        return bisect.bisect_left(
            range(len(ids)), True, key=lambda length: self.found(ids[:length])
        )

    def before(self, ids: list[int]) -> str:
        """The text before the first stop string of `ids`, without special tokens."""
        text = decoded(self._tokenizer, ids)
        cuts = [text[:at] for string in self.strings if (at := text.find(string)) >= 0]
        if self.special:
            shown = decoded(self._tokenizer, ids, special=True)
            cuts += [
                self._cut(ids, shown, at)
                for string in self.special
                if (at := shown.find(string)) >= 0
            ]
        return min(cuts, key=len, default=text)

    def _cut(self, ids: list[int], shown: str, at: int) -> str:
        """The text of what comes before `at` in `shown`, the text with special tokens."""

        def length(count: int) -> int:
            return len(decoded(self._tokenizer, ids[:count], special=True))

        whole = bisect.bisect_right(range(len(ids)), at, key=length) - 1
        plain = decoded(
            self._tokenizer, ids[whole : whole + 1]
        )  # of a special token nothing, but perhaps a space before it
        return decoded(self._tokenizer, ids[:whole]) + (shown[length(whole) : at] if plain else "")


def decoded(tokenizer: Any, ids: list[int], *, special: bool = False) -> str:
    """The text of `ids`, with special tokens or without. Tokens that the model has and the tokenizer lacks have none."""
    try:
        return str(tokenizer.decode(ids, skip_special_tokens=not special))
    except Exception:  # some tokenizers refuse what they don't know
        known = [token for token in ids if _knows(tokenizer, token)]
    with guarded(EngineError, "the tokenizer cannot decode what the model generated"):
        return str(tokenizer.decode(known, skip_special_tokens=not special))


def _any_in(strings: Sequence[str], text: str) -> bool:
    return any(string in text for string in strings)


def _knows(tokenizer: Any, token: int) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except Exception:  # each kind of tokenizer has its own way to say no
        return False


def _special_tokens(tokenizer: Any) -> set[str]:
    """The tokens that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(tokenizer, "all_special_tokens", [])
    return {
        str(token) for token in [*named, *(one for one in added if getattr(one, "special", False))]
    } - {""}
