"""Generation with transformers, in this process: batched, left-padded, greedy or drawn.

It runs on any device that torch has. A member's weights are written straight into the model's own
parameters. Greedy means the most likely token and nothing else: a repetition penalty or temperature
in the model's generation config is ignored, as in TRL and vLLM.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estune.common.guard import guarded, reason
from estune.common.types import Completion, ExpertCounts, Prompt, Sampling, Variant
from estune.config import ESConfig
from estune.engines import repeatability
from estune.engines.base import check_weights
from estune.engines.batch import Batch
from estune.engines.cache_reuse import Reuse
from estune.engines.expert_load import ExpertCounter
from estune.engines.grouped_attention import group_heads
from estune.engines.own_parameters import OwnParameters
from estune.engines.repeatability import LogitsRecorder, Probe
from estune.engines.sampling import Drawn, sample_seeds
from estune.engines.stops import Stopped
from estune.engines.tokens import Tokenizer
from estune.engines.vision import Inputs, merged
from estune.errors import EngineError, EstuneError, ModelError
from estune.theta.architectures import auto_class
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import Layout
from estune.theta.theta import Theta

logger = logging.getLogger(__name__)

_STEPS = 8  # tokens per call of generate, after which sequences that have ended leave the batch


class TransformersEngine:
    """A causal LM of transformers as an engine.

    Args:
        folder: the checkpoint.
        layout: where the files' tensors are in the model.
        config: batch size, stop strings and template settings are taken from it.
        model: the causal LM. It stays usable for training.
        tokenizer: used instead of the one in the folder.

    Raises:
        ModelError: the model cannot generate, or lacks a parameter of its files.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        config: ESConfig,
        model: Any,
        tokenizer: Any = None,
    ) -> None:
        self._tokenizer = Tokenizer(folder, config, tokenizer)
        self._model = model
        with guarded(ModelError, f"{folder}: transformers cannot generate with this model"):
            if head := model.get_output_embeddings():
                head.register_forward_pre_hook(_contiguous)
            self._reuse = Reuse.of(model)
            self.parameters = OwnParameters(model, layout)
            self._vocabulary = len(model.get_input_embeddings().weight)
        level = logging.INFO if self._reuse.saves_all else logging.WARNING
        logger.log(level, "%s", self._reuse.describe())
        self._pad = self._tokenizer.padding(self._vocabulary)
        self._experts = ExpertCounter(model, self._pad)
        self._batch_size = config.generation_batch_size
        ends = self._tokenizer.ends(model.generation_config)
        self._end = {token for token in ends if token < self._vocabulary}
        self._checked = False
        # `generate` takes settings that we leave out from the model's generation config.
        model.generation_config = self._greedy(1)

    @property
    def context_length(self) -> int:
        text = self._model.config.get_text_config()
        return int(getattr(text, "max_position_embeddings", None) or 1 << 30)

    def read(self, name: str) -> torch.Tensor:
        """Return the parameter `name` as the model holds it."""
        return self.parameters.read(name)

    def load(self, theta: Theta, variant: Variant) -> None:
        self.parameters.load(theta, variant)

    def check(self, theta: Theta, variant: Variant) -> None:
        """Compare the weights; the first time, also check that completions are repeatable.

        If they depend on the other prompts of a batch, prompts are completed one at a time.

        Raises:
            EngineError: the engine does not hold the variant's weights.
            ModelError: completions depend on earlier prompts.
        """
        check_weights(theta, variant, self.read)
        if not self._checked:
            alone = self._check_repeatable(theta, variant)
            self._check_batch(alone)
            self._checked = True

    def expert_counts(self) -> ExpertCounts:
        return self._experts.counts()

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(inputs) for inputs in self._inputs(prompts)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        inputs = self._inputs(prompts)
        self._experts.start()
        seeds: list[int] = []
        if sampling:
            seeds = [seed for one in inputs for seed in sample_seeds(one.ids, sampling)]
            inputs = [one for one in inputs for _ in range(sampling.n)]
        # One budget for all, so that completions don't depend on how batches are formed.
        longest = max(map(len, inputs), default=0)
        budget = min(max_completion_length, self.context_length - longest)
        # Prompts of similar length in one batch need the least padding.
        order = sorted(range(len(inputs)), key=lambda i: (inputs[i].kind, len(inputs[i])))
        completions: dict[int, Completion] = {}
        while len(completions) < len(order):
            batch = order[len(completions) : len(completions) + self._batch_size]
            batch = [i for i in batch if inputs[i].kind == inputs[batch[0]].kind]
            chosen = [inputs[i] for i in batch]
            drawn = [seeds[i] for i in batch] if sampling else []
            try:
                done = self._generate_batch(chosen, budget, drawn, sampling)
            except EstuneError:
                raise
            except Exception as error:  # a model's own code may raise anything
                self._shrink(error)
                continue
            completions.update(zip(batch, done, strict=True))
        return [completions[i] for i in range(len(order))]

    def _check_repeatable(self, theta: Theta, variant: Variant) -> Probe:
        first, again = (self._probe(repeatability.PROMPTS[:1])[0] for _ in range(2))
        try:
            check_weights(theta, variant, self.read)
        except EngineError as error:
            raise ModelError(f"{_changing(self._model, 'its own weights')} ({error})") from error
        apart = repeatability.difference(first, again)
        if not repeatability.within_rounding(apart, self._model.dtype):
            raise ModelError(_changing(self._model, "its completion of the same prompt"))
        if apart:
            logger.warning(
                "this model completes the same prompt with other roundings each time, "
                "so rewards may differ from run to run"
            )
        return first

    def _check_batch(self, alone: Probe) -> None:
        batched = self._probe(repeatability.PROMPTS)[0]
        apart = repeatability.difference(alone, batched)
        if self._batch_size > 1 and not repeatability.within_rounding(apart, self._model.dtype):
            logger.warning(
                "this model's completions depend on the other prompts of a batch, "
                "so prompts are completed one at a time"
            )
            self._batch_size = 1

    @torch.inference_mode()
    def _probe(self, prompts: Sequence[Sequence[int]]) -> list[Probe]:
        """Let the model complete the token ids of `prompts` in one batch."""
        room = max(1, self.context_length - repeatability.STEPS)
        encoded = [[token % self._vocabulary for token in prompt][:room] for prompt in prompts]
        recorder = LogitsRecorder()
        with guarded(EngineError, "the model failed to complete a prompt of a few tokens"):
            batch = Batch(self._model, self._reuse, encoded, self._pad)
            self._extend(batch, max(map(len, encoded)), repeatability.STEPS, [recorder])
        return [Probe.of(recorder, batch.ids, row) for row in range(len(encoded))]

    def _inputs(self, prompts: Sequence[Prompt]) -> list[Inputs]:
        return self._tokenizer.inputs(prompts, self._vocabulary)

    @torch.inference_mode()
    def _generate_batch(
        self, inputs: list[Inputs], budget: int, seeds: list[int], sampling: Sampling | None
    ) -> list[Completion]:
        """Complete prompts of one kind: greedily, or drawn with one of `seeds` each."""
        batch = self._batch(inputs)
        longest = max(map(len, inputs))
        done: dict[int, Completion] = {}
        finite = [True] * len(inputs)
        while batch.remaining:
            watch = _FiniteRows()
            processors: list[Any] = [watch]
            if sampling:
                remaining = [seeds[index] for index in batch.remaining]
                processors.append(Drawn(remaining, sampling, longest, budget))
            ended = self._extend(batch, longest, budget, processors)
            for row, index in enumerate(batch.remaining):
                finite[index] &= bool(watch.finite[row])
                if ended[row]:
                    new = batch.ids[row, longest:].tolist()
                    completion = self._tokenizer.completion(new, self._end, budget)
                    done[index] = replace(completion, finite=finite[index])
            batch.keep([row for row, over in enumerate(ended) if not over])
        return [done[index] for index in range(len(inputs))]

    def _batch(self, inputs: Sequence[Inputs]) -> Batch:
        """Return the batch of prompts of one kind; those with images are completed in one call."""
        features = merged(inputs, self._model.device, self._model.dtype)
        reuse = self._reuse.none("a prompt holds images") if features else self._reuse
        return Batch(self._model, reuse, [one.ids for one in inputs], self._pad, features)

    def _extend(self, batch: Batch, longest: int, budget: int, processors: list[Any]) -> list[bool]:
        """Generate some more tokens; return which sequences have ended."""
        room = longest + budget - batch.ids.shape[1]
        settings: dict[str, Any] = {"generation_config": self._greedy(room)}
        if batch.cache is not None:
            settings = {
                "generation_config": self._greedy(min(room, _STEPS)),
                self._reuse.argument: batch.cache,
            }
        stop = Stopped(self._tokenizer.stops, longest)
        ids = self._model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            stopping_criteria=[stop] if self._tokenizer.stops else None,
            logits_processor=processors,
            **batch.features,
            **settings,
        )
        batch.extend(ids)
        if ids.shape[1] == longest + budget:
            return [True] * len(ids)
        ends = torch.tensor([*self._end], dtype=ids.dtype, device=ids.device)
        over = torch.isin(ids[:, longest:], ends).any(1)  # (B,)
        return (over | stop.rows.to(ids.device)).tolist()

    def _greedy(self, budget: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            max_new_tokens=budget,
            eos_token_id=sorted(self._end) or None,
            pad_token_id=self._pad,
        )

    def _shrink(self, error: Exception) -> None:
        """Halve the batch size after running out of memory; raise any other error."""
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not exhausted and "allocate memory" not in str(error).lower():
            raise EngineError(f"the model failed to generate ({reason(error)})") from error
        if self._batch_size == 1:
            raise EngineError(
                "out of memory with one sequence at a time: lower max_completion_length, "
                "or use a smaller model or dtype"
            ) from error
        self._batch_size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _FiniteRows:
    """A logits processor that changes nothing.

    Attributes:
        finite: whether the largest logit of each row was always finite (B,).
    """

    def __init__(self) -> None:
        self.finite = torch.tensor(True)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.finite = self.finite.to(scores.device) & torch.isfinite(scores.amax(-1))
        return scores


def open_engine(
    folder: Path,
    layout: Layout,
    config: ESConfig,
    device: str,
    dtype: torch.dtype,
    tokenizer: Any = None,
) -> TransformersEngine:
    """Return an engine for the model in `folder`; see `TransformersEngine` for the arguments.

    Raises:
        EngineError: fused parameters don't hold the files' values where `layout` says.
    """
    model = load_model(folder, config, device, dtype)
    with guarded(ModelError, f"{folder}: transformers cannot generate with this model"):
        group_heads(model)
    engine = TransformersEngine(folder, layout, config, model, tokenizer)
    if layout.fused:
        engine.parameters.check_files(open_checkpoint(folder))
    return engine


def load_model(folder: Path, config: ESConfig, device: str, dtype: torch.dtype) -> Any:
    """Return the model in `folder` for inference.

    Raises:
        ModelError: transformers cannot load it.
    """
    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        from transformers import AutoConfig

        trusted = config.trust_remote_code
        kind = auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=trusted))
        model = kind.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trusted,
            **(config.model_init_kwargs or {}),
        )
        if getattr(model.config, "rescale_every", 0):
            # RWKV divides its weights once, in place, so weights written later would not be.
            model.config.rescale_every = 0
        return model.to(device).eval().requires_grad_(False)


def _changing(model: Any, what: str) -> str:
    return (
        f"{type(model).__name__} of transformers changes {what} as it generates, "
        "so completions would not follow from a member's weights"
    )


def _contiguous(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Pack the hidden states of the last positions.

    On their strided slice torch would copy the whole output embedding once per sequence (0.9 GB and
    a third of the time for 16 sequences of a 49,152-word model).
    """
    return (inputs[0].contiguous(), *inputs[1:])
