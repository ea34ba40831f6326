"""Find the first stop string in a completion's tokens, and the text before it.

Completions are decoded without special tokens. A stop string that names one, such as `<|im_end|>`,
is therefore searched for in a second text, decoded with special tokens.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import torch

from estune.common.guard import guarded
from estune.errors import EngineError


class Stops:
    """The stop strings of a run, for texts that `tokenizer`, of transformers, decodes.

    Attributes:
        special: the stop strings that contain a special token.
        window: how many tokens the longest stop string can span.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        special = _special_tokens(tokenizer) if strings else set()
        self._tokenizer = tokenizer
        self.strings = list(strings)
        self.special = [string for string in strings if any(token in string for token in special)]
        longest = max((len(string.encode()) for string in strings), default=0)
        # A token has at least one byte, unless it is special; 4 are in reserve for those.
        self.window = longest + 4

    def __bool__(self) -> bool:
        return bool(self.strings)

    def found(self, ids: list[int]) -> bool:
        """Whether the text of `ids` contains a stop string."""
        return self._contains(ids, self.strings) or self._contains(ids, self.special, special=True)

    def ends(self, ids: list[int]) -> bool:
        """Whether a stop string ends near the last of `ids`; others are not looked for."""
        return bool(self) and self.found(ids[-self.window :]) and self.found(ids)

    def first(self, ids: list[int]) -> int | None:
        """Return how many tokens there are up to the end of the first stop string; None if none."""
        if not self.found(ids):
            return None
        lengths = range(len(ids))
        return bisect.bisect_left(lengths, True, key=lambda length: self.found(ids[:length]))

    def before(self, ids: list[int]) -> str:
        """Return the text of `ids` before the first stop string, without special tokens."""
        plain = decoded(self._tokenizer, ids)
        starts = [start for string in self.strings if (start := plain.find(string)) >= 0]
        texts = [plain[:start] for start in starts]
        if self.special:
            full = decoded(self._tokenizer, ids, special=True)
            starts = [start for string in self.special if (start := full.find(string)) >= 0]
            texts += [self._plain_before(start, full, ids) for start in starts]
        return min(texts, key=len, default=plain)

    def _contains(self, ids: list[int], strings: list[str], *, special: bool = False) -> bool:
        if not strings:
            return False
        text = decoded(self._tokenizer, ids, special=special)
        return any(string in text for string in strings)

    def _plain_before(self, end: int, full: str, ids: list[int]) -> str:
        """Return the text before position `end` of `full`, without special tokens.

        `full` is the text of `ids` with special tokens. For example, the tokens `Hi`, `<s>`, `you`
        and `<e>` have the full text `Hi<s>you<e>`. The stop string `u<e>` begins at its position 7,
        inside the token `you`. The result is `Hiyo`: the plain text of the tokens before that one,
        and its own characters before position 7.
        """

        def full_length(count: int) -> int:
            return len(decoded(self._tokenizer, ids[:count], special=True))

        # The first `count` tokens end at or before `end`; the next one goes beyond it.
        count = bisect.bisect_right(range(len(ids)), end, key=full_length) - 1
        text = decoded(self._tokenizer, ids[:count])
        # A special token decodes to nothing, or to a space.
        if decoded(self._tokenizer, ids[count : count + 1]):
            text += full[full_length(count) : end]
        return text


class Stopped:
    """A stopping criterion for transformers that ends rows at a stop string.

    transformers' own criterion compares stop strings with the tokens' spelling, and fails if a
    tokenizer decodes its tokens to something else.

    Args:
        stops: the stop strings of each row (B).
        before: the tokens that earlier calls added to each row (B).
        width: how many columns were there before this call.

    Attributes:
        rows: whether each row has contained a stop string so far (B,).
    """

    def __init__(self, stops: Sequence[Stops], before: Sequence[list[int]], width: int) -> None:
        self._stops = stops
        self._before = before
        self._width = width
        self.rows = torch.tensor([False] * len(stops))

    def __call__(self, ids: torch.Tensor, scores: Any, **settings: Any) -> torch.Tensor:
        added = ids[:, self._width :].tolist()
        each = zip(self._stops, self._before, added, strict=True)
        found = [stops.ends(before + new) for stops, before, new in each]
        self.rows = self.rows.to(ids.device) | torch.tensor(found, device=ids.device)
        return self.rows


def decoded(tokenizer: Any, ids: list[int], *, special: bool = False) -> str:
    """Return the text of `ids`, with or without special tokens.

    Tokens that the tokenizer does not know are left out; a model may have more than its tokenizer.
    """
    try:
        return str(tokenizer.decode(ids, skip_special_tokens=not special))
    except Exception:  # some tokenizers raise an error for a token that they do not know
        known = [token for token in ids if _knows(tokenizer, token)]
    with guarded(EngineError, "the tokenizer cannot decode what the model generated"):
        return str(tokenizer.decode(known, skip_special_tokens=not special))


def _knows(tokenizer: Any, token: int) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except Exception:  # each kind of tokenizer raises its own
        return False


def _special_tokens(tokenizer: Any) -> set[str]:
    """Return the tokens that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(tokenizer, "all_special_tokens", [])
    special = [token for token in added if getattr(token, "special", False)]
    return {str(token) for token in [*named, *special]} - {""}
