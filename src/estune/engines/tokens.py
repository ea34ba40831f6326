"""Prompts to token ids and back, the same for every engine: text and token ids go in as they are, a conversation through
the template."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.common.types import Completion, Prompt, is_token_ids
from estune.config import ESConfig
from estune.engines.chat import Chat
from estune.engines.stops import Stops, decoded
from estune.errors import DataError, ModelError

logger = logging.getLogger(__name__)


class Tokenizer:
    """The tokenizer of a checkpoint folder, with the settings of a run.

    Raises:
        ModelError: the folder has no tokenizer that transformers can load.
    """

    def __init__(self, folder: Path, config: ESConfig, inner: Any = None) -> None:
        given = inner or _load(folder, config.trust_remote_code)
        self.inner = getattr(given, "tokenizer", given)  # a processor has one
        self._named_ends = _token_ids(
            getattr(self.inner, "eos_token_id", None), *_ends_of(folder, config.trust_remote_code)
        )
        self.stops = Stops(self.inner, config.stop or [])
        self._chat = Chat(self.inner, config.chat_template_kwargs or {})
        self._looked_at_plain_prompts = False

    def encode(self, prompts: Sequence[Prompt], vocabulary: int | None = None) -> list[list[int]]:
        """Token ids of each prompt.

        Args:
            vocabulary: how many tokens the model knows.

        Raises:
            DataError: a conversation that the chat template does not take, or a token that the model does not know.
        """
        return [self._encode(prompt, row, vocabulary) for row, prompt in enumerate(prompts)]

    def decode(self, ids: list[int]) -> str:
        """The text of completion tokens, without special tokens."""
        return decoded(self.inner, ids)

    def ends(self, generation_config: Any = None) -> set[int]:
        """The tokens that end a completion: all that the folder's files name, and those of a model's generation config."""
        return self._named_ends | _token_ids(getattr(generation_config, "eos_token_id", None))

    def padding(self, vocabulary: int) -> int:
        """A token to pad with. Padding is masked, so any token will do that the model has."""
        named = (
            getattr(self.inner, "pad_token_id", None),
            getattr(self.inner, "eos_token_id", None),
        )
        return next((token for one in named for token in _token_ids(one) if token < vocabulary), 0)

    def completion(self, new: list[int], ends: set[int], budget: int) -> Completion:
        """Cut the row `new` of generated tokens at its first end token, and its text at the first stop string."""
        length = next((i for i, token in enumerate(new) if token in ends), len(new))
        ids = new[:length]
        stopped = self.stops.first(ids)
        if stopped is None:
            return Completion(self.decode(ids), ids, clipped=length == budget)
        return Completion(self.stops.before(ids[:stopped]), ids[:stopped], clipped=False)

    def _encode(self, prompt: Prompt, row: int, vocabulary: int | None) -> list[int]:
        try:
            ids = self._ids(prompt)
        except DataError as error:
            raise DataError(f"row {row}: {error}") from error
        if vocabulary is not None and ids and (wrong := max(ids)) >= vocabulary:
            start = ", ".join(map(str, ids[:6]))
            raise DataError(
                f"row {row}: token {wrong} of [{start}, …] is none of the model's {vocabulary:,}; "
                "use the tokenizer that belongs to this model"
            )
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if is_token_ids(prompt):
            return list(prompt)
        if isinstance(prompt, str):
            self._look_at_plain_prompts(prompt)
            return self._tokens(prompt)
        return self._tokens(self._chat.render(prompt), add_special_tokens=False)  # type: ignore[arg-type]

    def _tokens(self, text: str, **settings: Any) -> list[int]:
        with guarded(DataError, "the tokenizer cannot read this prompt"):
            return [int(token) for token in self.inner(text, **settings)["input_ids"]]

    def _look_at_plain_prompts(self, prompt: str) -> None:
        """Say once what the tokenizer puts behind a plain prompt: a model may take it for the end of the answer."""
        if self._looked_at_plain_prompts:
            return
        self._looked_at_plain_prompts = True
        plain, whole = self._tokens(prompt, add_special_tokens=False), self._tokens(prompt)
        added = _behind(plain, whole)
        if added:
            logger.warning(
                "the model's tokenizer puts %s behind every plain prompt, and so the model sees it; "
                "where that is not meant, use conversations or token ids as prompts",
                " ".join(map(str, self.inner.convert_ids_to_tokens(added))),
            )


def _behind(plain: list[int], whole: list[int]) -> list[int]:
    """The tokens that `whole` has after those of `plain`."""
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[start + len(plain) :]
    return []


def _token_ids(*named: Any) -> set[int]:
    """The token ids among what files name: one, several, none, or −1 for none."""
    flat: Iterable[Any] = (
        token for one in named for token in (one if isinstance(one, (list, tuple, set)) else [one])
    )
    return {
        token
        for token in flat
        if isinstance(token, int) and not isinstance(token, bool) and token >= 0
    }


def _ends_of(folder: Path, trust_remote_code: bool) -> list[Any]:
    """What the model's config and generation config name as end tokens."""
    if not (folder / "config.json").is_file():
        return []
    with guarded(ModelError, f"{folder}: transformers cannot read this model's config"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
        found = [getattr(one, "eos_token_id", None) for one in (config, text)]
    if (folder / "generation_config.json").is_file():
        with guarded(
            ModelError,
            f"{folder / 'generation_config.json'}: cannot be read",
            "mend it, or take it away",
        ):
            from transformers import GenerationConfig

            found.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    return found


def _load(folder: Path, trust_remote_code: bool) -> Any:
    with guarded(ModelError, f"{folder}: no tokenizer could be loaded"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
