"""What a model that sees takes for a conversation with images.

The processor of a checkpoint does the work, as it would in plain transformers. Its result is kept
for the members that follow, so that an image is decoded and processed once per step.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from estune.common.guard import guarded
from estune.common.images import ImageFile
from estune.engines.processor import load_processor
from estune.errors import DataError, ModelError
from estune.theta.architectures import sees

logger = logging.getLogger(__name__)

_MOST_KEPT = 1 << 30  # bytes of processed images


@dataclass(frozen=True)
class Inputs:
    """One prompt as a model takes it.

    ids: its tokens, with those that stand for images.
    features: further inputs by name, such as pixel values, for one sequence.
    pictures: its images, as PIL images.
    marked: its tokens with one mark per image, for engines with a processor of their own.
    """

    ids: list[int]
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    pictures: tuple[Any, ...] = ()
    marked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What prompts have in common that fit into one batch: their features' names and shapes."""
        about = sorted((name, one) for name, one in self.features.items())
        return tuple(
            (name, () if self.per_token(name) else tuple(one.shape[1:])) for name, one in about
        )

    @property
    def size(self) -> int:
        """Bytes of the features and images."""
        pixels: int = sum(one.width * one.height for one in self.pictures)
        return 3 * pixels + sum(one.numel() * one.itemsize for one in self.features.values())

    def followed_by(self, count: int) -> Inputs:
        """Return the prompt with `count` tokens of text after it, whose ids are left open."""
        features = {
            name: torch.nn.functional.pad(one, (0, count)) if self.per_token(name) else one
            for name, one in self.features.items()
        }
        return Inputs(self.ids + [0] * count, features)

    def per_token(self, name: str) -> bool:
        """Whether the feature has one value per token."""
        one = self.features[name]
        return name.endswith("token_type_ids") and tuple(one.shape) == (1, len(self.ids))


class Vision:
    """The processor of a model that sees.

    Args:
        processor: None if the checkpoint has none, or it cannot be loaded.
        missing: why there is none.
    """

    def __init__(self, processor: Any, missing: str = "") -> None:
        self._processor = processor
        self._missing = missing
        self._kept: OrderedDict[tuple[str, ...], Inputs] = OrderedDict()
        self._bytes = 0

    @classmethod
    def of(cls, folder: Path, given: Any, *, trust_remote_code: bool) -> Vision | None:
        """Return the processor that is `given`, or else the one in `folder`.

        None if the model takes no images.
        """
        if not (folder / "config.json").is_file():
            return None
        from transformers import AutoConfig

        with guarded(ModelError, f"{folder}: transformers cannot read this model's config"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if not sees(config):
            return None
        if hasattr(given, "image_processor"):
            return cls(given)
        try:
            found = load_processor(folder, trust_remote_code=trust_remote_code)
        except ModelError as error:
            return cls(None, str(error))
        missing = f"{folder}: has no processor for images (preprocessor_config.json)"
        return cls(found, "" if found else missing)

    @property
    def chat_template(self) -> Any:
        """The processor's own chat template, or None."""
        return getattr(self._processor, "chat_template", None)

    def adds_special_tokens(self, text: str, tokenizer: Any) -> bool:
        """Whether special tokens go around the text of a conversation, by transformers' rule.

        They do unless its template has written the first one.
        """
        first = getattr(tokenizer, "bos_token", None)
        return self._processor is not None and not (first and text.startswith(first))

    def read(self, text: str, images: Sequence[ImageFile], tokenizer: Any) -> Inputs:
        """Return the inputs for the text of a conversation and its images.

        Raises:
            DataError: the processor refuses them.
            ModelError: there is no processor.
        """
        if self._processor is None:
            raise ModelError(self._missing)
        key = (text, *(image.digest for image in images))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        inputs = self._processed(text, images, tokenizer)
        self._kept[key] = inputs
        self._bytes += inputs.size
        while self._bytes > _MOST_KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].size
        return inputs

    def _processed(self, text: str, images: Sequence[ImageFile], tokenizer: Any) -> Inputs:
        pictures = [image.open().convert("RGB") for image in images]
        added = self.adds_special_tokens(text, tokenizer)
        with guarded(DataError, "the model's processor refuses this prompt with its images"):
            made = self._processor(
                text=[text], images=[pictures], add_special_tokens=added, return_tensors="pt"
            )
            marked = tokenizer(text, add_special_tokens=added)["input_ids"]
            features = {
                name: value
                for name, value in made.items()
                if name not in ("input_ids", "attention_mask") and torch.is_tensor(value)
            }
            ids = [int(token) for token in made["input_ids"][0]]
            return Inputs(ids, features, tuple(pictures), list(marked))


def merged(
    chosen: Sequence[Inputs], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the features of a batch of one kind; those per token are padded on the left."""
    longest = max(map(len, chosen))
    batch = {}
    for name in chosen[0].features:
        each = [one.features[name] for one in chosen]
        if chosen[0].per_token(name):
            each = [torch.nn.functional.pad(one, (longest - one.shape[1], 0)) for one in each]
        whole = torch.cat(each).to(device)
        batch[name] = whole.to(dtype) if whole.is_floating_point() else whole
    return batch
