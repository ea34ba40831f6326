"""Estimate how far a tuned model π moved from its base π₀, as the divergence KL(π‖π₀).

For a completion sampled from π, Σ (log π − log π₀) over its tokens is an unbiased estimate of
KL(π‖π₀). It may be negative; the mean over many completions is close to the divergence. Both models
read the same tokens with transformers.

If the model itself ended a completion, its end token counts as a token too. If a model has several
end tokens, their probabilities are added. A completion that the token budget or a stop string
ended has no end token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.guard import guarded
from estune.common.types import Completion, Prompt
from estune.config import ESConfig, RunConfig
from estune.engines.device import engine_device, engine_dtype
from estune.engines.stops import Stops
from estune.engines.tokens import Tokenizer
from estune.engines.transformers import load_model
from estune.engines.vision import Inputs, merged
from estune.errors import ConfigError, EngineError
from estune.evaluation.exams import ExamResult
from estune.evaluation.statistics import standard_error
from estune.run.base_model import base_model

Pair = tuple[Prompt, Completion]
LogProbabilities = list[NDArray[np.float64]]  # one array per completion, (T,), T tokens
Divergences = dict[tuple[str, str], "Divergence"]  # (model, name of the exam) → divergence


@dataclass(frozen=True)
class Divergence:
    """KL(π‖π₀) in nats, per completion and per token, with standard errors over prompts."""

    per_completion: float
    error: float
    per_token: float
    token_error: float


class Likelihood:
    """Computes log-probabilities of completions under the model in `folder`.

    The model is in fp32 unless the config sets a dtype.

    Raises:
        ModelError: transformers cannot load it.
    """

    def __init__(self, folder: Path, config: ESConfig) -> None:
        self._tokenizer = Tokenizer(folder, config)
        dtype = torch.float32 if config.dtype == "auto" else engine_dtype(config)
        self._model = load_model(folder, config, engine_device(config), dtype)
        known = len(self._model.get_input_embeddings().weight)
        ends = self._tokenizer.ends(self._model.generation_config)
        self._ends = sorted(token for token in ends if token < known)

    def of(self, pairs: Sequence[Pair], stop: Sequence[str]) -> LogProbabilities:
        """Return the log-probability of each token of each completion.

        Args:
            stop: the stop strings with which the completions were generated.
        """
        prompts = self._tokenizer.inputs([prompt for prompt, _ in pairs])
        return [
            self._of_tokens(inputs, completion.ids, self._ended_by_model(completion, stop))
            for inputs, (_, completion) in zip(prompts, pairs, strict=True)
        ]

    @torch.inference_mode()
    def _of_tokens(
        self, prompt: Inputs, completion: list[int], with_end: bool
    ) -> NDArray[np.float64]:
        """Return the log-probability of each token, and that of ending if `with_end`."""
        ids = torch.tensor([prompt.ids + completion], device=self._model.device)
        count = len(completion) + 1
        images = merged(
            [prompt.followed_by(len(completion))], self._model.device, self._model.dtype
        )
        options = {"logits_to_keep": count} if self._model._supports_logits_to_keep() else {}
        with guarded(EngineError, "the model failed to read a completion for its KL"):
            logits = self._model(input_ids=ids, **images, **options).logits[0, -count:]
        log_probabilities = logits.float().log_softmax(-1)  # (T + 1, V)
        chosen = log_probabilities[:-1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        if with_end:
            end = log_probabilities[-1:, self._ends].logsumexp(-1)
            chosen = torch.cat([chosen, end])
        return np.asarray(chosen.double().cpu().numpy(), np.float64)

    def _ended_by_model(self, completion: Completion, stop: Sequence[str]) -> bool:
        """Return whether an end token ended the completion, not a stop string or the budget."""
        stopped = Stops(self._tokenizer.inner, stop).found(completion.ids)
        return bool(self._ends) and not completion.clipped and not stopped


def divergences(results: Sequence[ExamResult], base: str) -> Divergences:
    """Return each model's divergence from `base` in each exam; that of the base itself is 0.

    Raises:
        ConfigError: a model's tokenizer differs from the base's.
    """
    moved = {_key(one): Divergence(0.0, 0.0, 0.0, 0.0) for one in results}
    tuned = [one for one in results if one.model != base]
    if not tuned:
        return moved
    models = list(dict.fromkeys(one.model for one in tuned))
    _check_vocabulary([base, *models], results[0].exam.config)
    at_base = _likelihoods(base, tuned)
    for model in models:
        drawn = [one for one in tuned if one.model == model]
        own = _likelihoods(model, drawn)
        for one in drawn:
            moved[_key(one)] = estimate(own[_key(one)], at_base[_key(one)], one.samples)
    return moved


def estimate(tuned: LogProbabilities, base: LogProbabilities, samples: int) -> Divergence:
    """Estimate the divergence from the log-probabilities of the same completions under two models.

    Each prompt has `samples` completions, one after another. The divergence per token is the sum
    over all tokens divided by their number, and its standard error is that of a ratio estimator.
    """
    differences = [own - other for own, other in zip(tuned, base, strict=True)]
    sums = _prompt_means([one.sum() for one in differences], samples)
    tokens = _prompt_means([len(one) for one in differences], samples)
    per_token = float(sums.sum() / max(tokens.sum(), 1e-9))
    token_error = standard_error(sums - per_token * tokens) / max(float(tokens.mean()), 1e-9)
    return Divergence(float(sums.mean()), standard_error(sums), per_token, token_error)


def _prompt_means(values: Sequence[float], samples: int) -> NDArray[np.float64]:
    """Return the mean of each prompt's `samples` values."""
    means: NDArray[np.float64] = np.array(values, np.float64).reshape(-1, samples).mean(axis=1)
    return means


def _key(result: ExamResult) -> tuple[str, str]:
    return result.model, result.exam.name


def _likelihoods(
    model: str, results: Sequence[ExamResult]
) -> Mapping[tuple[str, str], LogProbabilities]:
    """Return the log-probabilities under `model` of the completions drawn in `results`."""
    config = results[0].exam.config
    reader = Likelihood(base_model(model, config, None)[1], config)
    return {_key(one): reader.of(_drawn_pairs(one), one.exam.config.stop or []) for one in results}


def _drawn_pairs(result: ExamResult) -> list[Pair]:
    prompts = [row["prompt"] for row in result.exam.rows for _ in range(result.samples)]
    completions = result.drawn.completions if result.drawn else []
    return list(zip(prompts, completions, strict=True))


def _check_vocabulary(models: Sequence[str], config: RunConfig) -> None:
    """Raise ConfigError if a tokenizer's vocabulary differs from that of the first model."""
    with guarded(ConfigError, "kl: the tokenizers cannot be compared"):
        tokenizers = [Tokenizer(base_model(model, config, None)[1], config) for model in models]
        first, *others = [tokenizer.inner.get_vocab() for tokenizer in tokenizers]
    for model, vocabulary in zip(models[1:], others, strict=True):
        if vocabulary != first:
            raise ConfigError(
                f"kl: the tokenizers of {model} and {models[0]} differ, "
                "so their probabilities cannot be compared; "
                f"give as base the model from which {model} was tuned"
            )
