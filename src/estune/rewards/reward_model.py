"""Use a reward model, such as one trained with TRL's `RewardTrainer`, as a reward function."""

from collections.abc import Sequence
from typing import Any

import torch

from estune.common.guard import guarded
from estune.engines.device import default_device
from estune.errors import ConfigError, EstuneError
from estune.theta.checkpoint import resolve

_BATCH = 16  # sequences at a time


class RewardModel:
    """Scores the prompt together with the completion.

    A prompt and a completion that are texts are concatenated. Conversations are formatted with the
    model's chat template.

    Args:
        source: hub id or local folder of a sequence classifier with one label, and its tokenizer.

    Raises:
        ConfigError: the model cannot be loaded, or has several labels.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.__name__ = source.rstrip("/").rpartition("/")[2]
        try:
            folder = resolve(source)
        except EstuneError as error:
            raise ConfigError(
                f"reward_funcs: {source} cannot be loaded as a reward model ({error})"
            ) from error
        safe = {
            "use_safetensors": True,
            "trust_remote_code": False,
        }  # load no pickles, run no code from the hub
        with guarded(ConfigError, f"reward_funcs: {source} cannot be loaded as a reward model"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(folder, **safe)
        if model.config.num_labels != 1:
            labels = f"{source} has {model.config.num_labels} labels"
            raise ConfigError(f"reward_funcs: {labels}; a reward model has one")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.to(default_device()).eval()

    @torch.inference_mode()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        texts = [self._joined(*pair) for pair in zip(prompts, completions, strict=True)]
        batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
        return [reward for batch in batches for reward in self._rewards(batch)]

    def _rewards(self, texts: list[str]) -> list[float]:
        inputs = self._tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        )
        inputs = inputs.to(self._model.device)
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = self._model(input_ids=tokens, attention_mask=mask).logits  # (B, 1)
        rewards: list[float] = logits[:, 0].float().tolist()
        return rewards

    def _joined(self, prompt: Any, completion: Any) -> str:
        if isinstance(completion, str):
            return f"{prompt}{completion}"
        return str(self._tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
