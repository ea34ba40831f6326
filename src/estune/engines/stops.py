"""Stop strings: where a completion's tokens first contain one, and the text before it.

Decoding leaves special tokens out. A stop string that names one (`<|im_end|>`) is therefore looked
for in a text that shows them.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import torch

from estune.common.guard import guarded
from estune.errors import EngineError


class Stops:
    """The stop strings `strings`, as `tokenizer`, of transformers, decodes them.

    Attributes:
        special: those that contain a special token.
        window: a stop string that ends at the last token lies within so many last tokens.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        special = _special_tokens(tokenizer) if strings else set()
        self._tokenizer = tokenizer
        self.strings = list(strings)
        self.special = [string for string in strings if any(token in string for token in special)]
        longest = max((len(string.encode()) for string in strings), default=0)
        self.window = longest + 4  # a token is at least one byte, unless it is special

    def __bool__(self) -> bool:
        return bool(self.strings)

    def found(self, ids: list[int]) -> bool:
        """Whether the text of `ids` contains a stop string."""
        return self._contains(ids, self.strings) or self._contains(ids, self.special, special=True)

    def first(self, ids: list[int]) -> int | None:
        """Return how many of `ids` complete the first stop string; None if they contain none."""
        if not self.found(ids):
            return None
        lengths = range(len(ids))
        return bisect.bisect_left(lengths, True, key=lambda length: self.found(ids[:length]))

    def before(self, ids: list[int]) -> str:
        """Return the text before the first stop string of `ids`, without special tokens."""
        text = decoded(self._tokenizer, ids)
        cuts = [text[:at] for string in self.strings if (at := text.find(string)) >= 0]
        if self.special:
            shown = decoded(self._tokenizer, ids, special=True)
            found = [at for string in self.special if (at := shown.find(string)) >= 0]
            cuts += [self._cut(ids, shown, at) for at in found]
        return min(cuts, key=len, default=text)

    def _contains(self, ids: list[int], strings: list[str], *, special: bool = False) -> bool:
        if not strings:
            return False
        text = decoded(self._tokenizer, ids, special=special)
        return any(string in text for string in strings)

    def _cut(self, ids: list[int], shown: str, at: int) -> str:
        """Return the text before position `at` of `shown`, without special tokens."""

        def length(count: int) -> int:
            return len(decoded(self._tokenizer, ids[:count], special=True))

        whole = bisect.bisect_right(range(len(ids)), at, key=length) - 1
        # A special token decodes to nothing, or to a space.
        plain = decoded(self._tokenizer, ids[whole : whole + 1])
        return decoded(self._tokenizer, ids[:whole]) + (shown[length(whole) : at] if plain else "")


class Stopped:
    """A stopping criterion of transformers that ends rows at a stop string.

    transformers' own compares tokens with strings, and fails on tokenizers that don't spell their
    tokens as they decode them.

    Attributes:
        rows: whether each row has ever contained a stop string (B,).
    """

    def __init__(self, stops: Stops, prompt_length: int) -> None:
        self._stops = stops
        self._prompt_length = prompt_length
        self.rows = torch.tensor(False)

    def __call__(self, ids: torch.Tensor, scores: Any, **settings: Any) -> torch.Tensor:
        found = [self._ends(row) for row in ids[:, self._prompt_length :].tolist()]
        self.rows = self.rows.to(ids.device) | torch.tensor(found, device=ids.device)
        return self.rows

    def _ends(self, new: list[int]) -> bool:
        """Look at the last tokens first, since decoding a whole row takes longer."""
        return self._stops.found(new[-self._stops.window :]) and self._stops.found(new)


def decoded(tokenizer: Any, ids: list[int], *, special: bool = False) -> str:
    """Return the text of `ids`, with or without special tokens.

    Tokens that the model has and the tokenizer lacks are left out.
    """
    try:
        return str(tokenizer.decode(ids, skip_special_tokens=not special))
    except Exception:  # some tokenizers refuse what they don't know
        known = [token for token in ids if _knows(tokenizer, token)]
    with guarded(EngineError, "the tokenizer cannot decode what the model generated"):
        return str(tokenizer.decode(known, skip_special_tokens=not special))


def _knows(tokenizer: Any, token: int) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except Exception:  # each kind of tokenizer refuses in its own way
        return False


def _special_tokens(tokenizer: Any) -> set[str]:
    """Return the tokens that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(tokenizer, "all_special_tokens", [])
    special = [token for token in added if getattr(token, "special", False)]
    return {str(token) for token in [*named, *special]} - {""}
