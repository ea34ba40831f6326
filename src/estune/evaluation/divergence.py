"""How far a tuned model moved from its base, on what it writes itself: KL(π‖π₀) estimated from completions drawn from π.

For a completion y of π, Σ (log π − log π₀) over its tokens has the mean KL(π‖π₀), so the average over completions
estimates it without bias, and one of them may be negative. Both models read the same tokens (teacher forcing) with
transformers. Where a completion ended by itself, its end is one more token; that it was any of the model's end tokens
is all that counts. Where the budget or a stop string ended it, nothing was chosen at the end, so nothing is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.guard import guarded
from estune.common.types import Completion, Prompt
from estune.config import ESConfig
from estune.engines.device import engine_device, engine_dtype
from estune.engines.stops import Stops
from estune.engines.tokens import Tokenizer
from estune.engines.transformers import load_model
from estune.errors import EngineError
from estune.evaluation.statistics import standard_error

Pair = tuple[Prompt, Completion]


@dataclass(frozen=True)
class Divergence:
    """KL(π‖π₀) in nats: a completion's, and a token's; with standard errors."""

    per_completion: float
    error: float
    per_token: float
    token_error: float


class Likelihood:
    """Log-probabilities of completions under the model in `folder`, in fp32 unless the config names a dtype.

    Raises:
        ModelError: transformers cannot load it.
    """

    def __init__(self, folder: Path, config: ESConfig) -> None:
        self._tokenizer = Tokenizer(folder, config)
        dtype = torch.float32 if config.dtype == "auto" else engine_dtype(config)
        self._model = load_model(folder, config, engine_device(config), dtype)
        known = len(self._model.get_input_embeddings().weight)
        self._end = sorted(
            token for token in self._tokenizer.ends(self._model.generation_config) if token < known
        )

    def of(self, pairs: Sequence[Pair], stop: Sequence[str]) -> list[NDArray[np.float64]]:
        """For each prompt and completion, the log-probability of each token, (T,), the end included where it was chosen."""
        prompts = self._tokenizer.encode([prompt for prompt, _ in pairs])
        return [
            self._one(ids, completion, self._ended(completion, stop))
            for ids, (_, completion) in zip(prompts, pairs, strict=True)
        ]

    @torch.inference_mode()
    def _one(self, prompt: list[int], completion: Completion, ended: bool) -> NDArray[np.float64]:
        new = completion.ids
        ids = torch.tensor([prompt + new], device=self._model.device)
        kept = {"logits_to_keep": len(new) + 1} if self._model._supports_logits_to_keep() else {}
        with guarded(EngineError, "the model failed to read a completion for its KL"):
            logits = self._model(input_ids=ids, **kept).logits[
                0, -len(new) - 1 :
            ]  # (T + 1, V); the last row is what follows
        found = logits.float().log_softmax(-1)
        each = found[:-1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        if ended:
            each = torch.cat([each, found[-1:, self._end].logsumexp(-1)])
        return np.asarray(each.double().cpu().numpy(), np.float64)

    def _ended(self, completion: Completion, stop: Sequence[str]) -> bool:
        """Whether the model chose to end it."""
        stopped = Stops(self._tokenizer.inner, stop).found(completion.ids)
        return bool(self._end) and not completion.clipped and not stopped


def estimate(
    tuned: Sequence[NDArray[np.float64]], base: Sequence[NDArray[np.float64]], samples: int
) -> Divergence:
    """The divergence seen in completions of which each prompt has `samples`, one after the other.

    Standard errors are over prompts. A token's is Σ sums ÷ Σ tokens, with the error of a ratio estimator.
    """
    differences = [own - other for own, other in zip(tuned, base, strict=True)]
    sums = np.array([one.sum() for one in differences]).reshape(-1, samples).mean(axis=1)  # (P,)
    tokens = (
        np.array([len(one) for one in differences], np.float64).reshape(-1, samples).mean(axis=1)
    )  # (P,)
    each = float(sums.sum() / max(tokens.sum(), 1e-9))
    token_error = standard_error(sums - each * tokens) / max(float(tokens.mean()), 1e-9)
    return Divergence(float(sums.mean()), standard_error(sums), each, token_error)
