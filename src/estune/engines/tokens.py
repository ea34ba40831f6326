"""Turn prompts into token ids, and generated ids into completions, for every engine alike.

Prompts of token ids stay unchanged, plain text is tokenized, and conversations are rendered with
the chat template first.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.common.images import images_in
from estune.common.types import Completion, Prompt, is_token_ids
from estune.config import ESConfig
from estune.engines.chat import Chat
from estune.engines.stops import Stops
from estune.engines.vision import Inputs, Vision
from estune.errors import DataError, ModelError

logger = logging.getLogger(__name__)


class Tokenizer:
    """The tokenizer of a checkpoint folder, with the settings of a run.

    Args:
        inner: a tokenizer to use instead of the folder's.

    Raises:
        ModelError: the folder has no tokenizer that transformers can load.
    """

    def __init__(self, folder: Path, config: ESConfig, inner: Any = None) -> None:
        trusted = config.trust_remote_code
        loaded = inner or _load(folder, trusted)
        self.inner = getattr(loaded, "tokenizer", loaded)  # a processor has one
        self.vision = Vision.of(folder, loaded, trust_remote_code=trusted)
        own = getattr(self.inner, "eos_token_id", None)
        self._ends = _token_ids(own, *_ends_of(folder, trusted))
        self.stops = Stops(self.inner, config.stop or [])
        template = self.vision.chat_template if self.vision else None
        self._chat = Chat(
            self.inner,
            config.chat_template_kwargs or {},
            template,
            sees=self.vision is not None,
        )
        self._checked_suffix = False

    def encode(self, prompts: Sequence[Prompt], vocabulary: int | None = None) -> list[list[int]]:
        """Return the token ids of each prompt; see `inputs`."""
        return [one.ids for one in self.inputs(prompts, vocabulary)]

    def inputs(self, prompts: Sequence[Prompt], vocabulary: int | None = None) -> list[Inputs]:
        """Return each prompt as the model takes it: token ids, and what belongs to its images.

        Args:
            vocabulary: how many tokens the model has, to check the ids; None: no check.

        Raises:
            DataError: the chat template refuses a conversation, an image cannot be shown to the
                model, or the model lacks a token.
        """
        return [self._inputs_at(prompt, row, vocabulary) for row, prompt in enumerate(prompts)]

    def ends(self, generation_config: Any = None) -> set[int]:
        """Return the tokens that end a completion.

        The folder's files name them, and the model's own generation config may name more.
        """
        return self._ends | _token_ids(getattr(generation_config, "eos_token_id", None))

    def padding(self, vocabulary: int) -> int:
        """Return a token for padding. It is masked, so any token that the model has will do."""
        for name in ("pad_token_id", "eos_token_id"):
            for token in _token_ids(getattr(self.inner, name, None)):
                if token < vocabulary:
                    return token
        return 0

    def stops_with(self, more: Sequence[str]) -> Stops:
        """Return the run's stop strings and `more`."""
        return Stops(self.inner, [*self.stops.strings, *more]) if more else self.stops

    def completion(
        self, new: list[int], ends: set[int], budget: int, stops: Stops | None = None
    ) -> Completion:
        """Return generated tokens as a completion, cut at the first end token or stop string.

        stops: the stop strings, if they are not the run's.
        """
        if stops is None:
            stops = self.stops
        length = next((i for i, token in enumerate(new) if token in ends), len(new))
        stopped = stops.first(new[:length])
        ids = new[:length] if stopped is None else new[:stopped]
        clipped = stopped is None and length == budget
        return Completion(stops.before(ids), ids, clipped=clipped)

    def _inputs_at(self, prompt: Prompt, row: int, vocabulary: int | None) -> Inputs:
        try:
            inputs = self._inputs(prompt)
        except DataError as error:
            raise DataError(f"row {row}: {error}") from error
        ids = inputs.ids
        if vocabulary is not None and ids and (wrong := max(ids)) >= vocabulary:
            start = ", ".join(map(str, ids[:6]))
            raise DataError(
                f"row {row}: token {wrong} of [{start}, …] is not one of the model's "
                f"{vocabulary:,} tokens; use the tokenizer that belongs to this model"
            )
        return inputs

    def _inputs(self, prompt: Prompt) -> Inputs:
        if is_token_ids(prompt):
            return Inputs(list(prompt))
        if isinstance(prompt, str):
            self._warn_of_suffix(prompt)
            return Inputs(self._tokens(prompt))
        text = self._chat.render(prompt)  # type: ignore[arg-type]
        if self.vision is None:
            return Inputs(self._tokens(text, add_special_tokens=False))
        if images := images_in(prompt):
            return self.vision.read(text, images, self.inner)
        added = self.vision.adds_special_tokens(text, self.inner)
        return Inputs(self._tokens(text, add_special_tokens=added))

    def _tokens(self, text: str, **settings: Any) -> list[int]:
        with guarded(DataError, "the tokenizer cannot read this prompt"):
            return [int(token) for token in self.inner(text, **settings)["input_ids"]]

    def _warn_of_suffix(self, prompt: str) -> None:
        """Log once which tokens the tokenizer appends to plain prompts.

        A model may treat them as the end of the completion.
        """
        if self._checked_suffix:
            return
        self._checked_suffix = True
        plain = self._tokens(prompt, add_special_tokens=False)
        added = _suffix(plain, self._tokens(prompt))
        if added:
            logger.warning(
                "the model's tokenizer appends %s to every plain prompt, so the model sees it; "
                "if that is not intended, use conversations or token ids as prompts",
                " ".join(map(str, self.inner.convert_ids_to_tokens(added))),
            )


def _suffix(plain: list[int], whole: list[int]) -> list[int]:
    """Return the tokens of `whole` after those of `plain`."""
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[start + len(plain) :]
    return []


def _token_ids(*named: Any) -> set[int]:
    """Return all ids in `named`. Each entry is an id, a list of ids, or None or −1 for no id."""
    ids: set[int] = set()
    for one in named:
        tokens = one if isinstance(one, (list, tuple, set)) else [one]
        ids |= {token for token in tokens if type(token) is int and token >= 0}
    return ids


def _ends_of(folder: Path, trust_remote_code: bool) -> list[Any]:
    """Return the end tokens that the model's config and generation config name."""
    if not (folder / "config.json").is_file():
        return []
    from transformers import AutoConfig, GenerationConfig

    with guarded(ModelError, f"{folder}: transformers cannot read this model's config"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        found = [getattr(one, "eos_token_id", None) for one in (config, config.get_text_config())]
    generation = folder / "generation_config.json"
    if generation.is_file():
        with guarded(ModelError, f"{generation}: cannot be read", "fix it, or delete it"):
            found.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    return found


def _load(folder: Path, trust_remote_code: bool) -> Any:
    with guarded(ModelError, f"{folder}: no tokenizer could be loaded"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
