"""Prompts to token ids and back, the same for every engine: text and token ids go in as they are, a conversation through
the template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estune.config import ESConfig
from estune.errors import DataError, ModelError
from estune.member import Completion, Prompt, is_token_ids


class Tokenizer:
    """The tokenizer of a checkpoint folder, with the settings of a run.

    Raises:
        ModelError: the folder has no tokenizer that transformers can load.
    """

    def __init__(self, folder: Path, config: ESConfig, inner: Any = None) -> None:
        self.inner = inner or _load(folder, config.trust_remote_code)
        self.end: int | None = self.inner.eos_token_id
        pad = self.inner.pad_token_id
        self.pad: int = next(token for token in (pad, self.end, 0) if token is not None)
        self._stop = config.stop or []
        self._template_settings = config.chat_template_kwargs or {}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            DataError: a conversation, but the tokenizer has no chat template.
        """
        return [self._encode(prompt) for prompt in prompts]

    def decode(self, ids: list[int]) -> str:
        """The text of completion tokens, without special tokens."""
        return str(self.inner.decode(ids, skip_special_tokens=True))

    def ends(self, generation_config: Any) -> set[int]:
        """The tokens that end a completion: those of the model's generation config, and the tokenizer's."""
        own = generation_config.eos_token_id if generation_config else None
        return {token for token in {self.end, *(own if isinstance(own, list) else [own])} if token is not None}

    def completion(self, new: list[int], ends: set[int], budget: int) -> Completion:
        """Cut the row `new` of generated tokens at its end token or padding, and its text at the first stop string."""
        length = next((i for i, token in enumerate(new) if token in ends or token == self.pad), len(new))
        text = self.decode(new[:length])
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=len(text))
        return Completion(text[:cut], new[:length], clipped=length == budget and cut == len(text))

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return list(self.inner(prompt)["input_ids"])
        if is_token_ids(prompt):
            return list(prompt)
        if not self.inner.chat_template:
            raise DataError("the prompts are conversations, but the model's tokenizer has no chat template; use plain text prompts")
        text = self.inner.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **self._template_settings)
        return list(self.inner(text, add_special_tokens=False)["input_ids"])


def _load(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for missing or broken files
        raise ModelError(f"{folder}: no tokenizer could be loaded ({' '.join(str(error).split())[:200]})") from None
