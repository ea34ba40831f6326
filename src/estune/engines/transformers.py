"""Generation with transformers, in this process: batched, left-padded, greedy or drawn.

It runs on any device that torch has. A member's weights are written straight into the model's own
parameters. Greedy means the most likely token and nothing else: a repetition penalty or temperature
in the model's generation config is ignored, as in TRL and vLLM.
"""

import itertools
import logging
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estune.common.guard import guarded
from estune.common.types import Completion, ExpertCounts, Prompt, Request, Sampling, Variant
from estune.config import ESConfig
from estune.engines import repeatability
from estune.engines.base import budget_of, check_weights
from estune.engines.batch import Batch, OpenRequest
from estune.engines.cache_reuse import Reuse
from estune.engines.expert_load import ExpertCounter
from estune.engines.grouped_attention import group_heads
from estune.engines.own_parameters import OwnParameters
from estune.engines.repeatability import LogitsRecorder, Probe
from estune.engines.request_loop import RequestLoop, greedy
from estune.engines.sampling import sample_seeds
from estune.engines.stops import Stops
from estune.engines.tokens import Tokenizer
from estune.engines.vision import Inputs
from estune.errors import EngineError, ModelError
from estune.theta.architectures import auto_class
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import Layout
from estune.theta.theta import Theta

logger = logging.getLogger(__name__)


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
        ends = self._tokenizer.ends(model.generation_config)
        self._end = {token for token in ends if token < self._vocabulary}
        most = config.generation_batch_size
        self._loop = RequestLoop(model, self._reuse, self._pad, self._end, most)
        self._numbers = itertools.count()
        self._checked = False
        # `generate` takes settings that we leave out from the model's generation config.
        model.generation_config = greedy(1, self._end, self._pad)

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
        # One budget for all, so that completions don't depend on how batches are formed.
        longest = max(map(len, inputs), default=0)
        budget = min(max_completion_length, self.context_length - longest)
        requests = self._requests_of(inputs, budget, sampling)
        # Prompts of similar length in one batch need the least padding.
        order = sorted(requests, key=lambda one: (one.inputs.kind, len(one.inputs)))
        try:
            while order:
                kind = order[0].inputs.kind
                batch = [one for one in order[: self._loop.most] if one.inputs.kind == kind]
                order = order[len(batch) :]
                self._complete(batch)
        finally:
            self._loop.abort({request.number for request in requests})
        return [self._completion(request) for request in requests]

    def submit(self, request: Request) -> int:
        [inputs] = self._inputs([request.prompt])
        budget = budget_of(request.max_completion_length, len(inputs), self.context_length)
        sampling = request.sampling
        seed = sample_seeds(inputs.ids, sampling)[0] if sampling else 0
        stops = self._tokenizer.stops_with(request.stop)
        one = OpenRequest(next(self._numbers), inputs, budget, stops, sampling, seed)
        self._loop.submit(one)
        return one.number

    def step(self) -> list[tuple[int, Completion]]:
        return [(request.number, self._completion(request)) for request in self._loop.step()]

    def abort(self, numbers: Container[int]) -> None:
        self._loop.abort(numbers)

    def _complete(self, requests: list[OpenRequest]) -> None:
        for request in requests:
            self._loop.submit(request)
        while self._loop.busy:
            self._loop.step()

    def _requests_of(
        self, inputs: list[Inputs], budget: int, sampling: Sampling | None
    ) -> list[OpenRequest]:
        """Return the requests for prompts: one each, or `sampling.n`."""
        stops = self._tokenizer.stops
        if sampling is None:
            return [OpenRequest(next(self._numbers), one, budget, stops) for one in inputs]
        return [
            OpenRequest(next(self._numbers), one, budget, stops, sampling, seed)
            for one in inputs
            for seed in sample_seeds(one.ids, sampling)
        ]

    def _completion(self, request: OpenRequest) -> Completion:
        completion = self._tokenizer.completion(
            request.new[: request.budget], self._end, request.budget, request.stops
        )
        return replace(completion, finite=request.finite)

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
        if self._loop.most > 1 and not repeatability.within_rounding(apart, self._model.dtype):
            logger.warning(
                "this model's completions depend on the other prompts of a batch, "
                "so prompts are completed one at a time"
            )
            self._loop.most = 1

    @torch.inference_mode()
    def _probe(self, prompts: Sequence[Sequence[int]]) -> list[Probe]:
        """Let the model complete the token ids of `prompts` in one batch."""
        room = max(1, self.context_length - repeatability.STEPS)
        encoded = [[token % self._vocabulary for token in prompt][:room] for prompt in prompts]
        recorder = LogitsRecorder()
        none = Stops(self._tokenizer.inner, [])
        requests = [OpenRequest(0, Inputs(ids), repeatability.STEPS, none) for ids in encoded]
        with guarded(EngineError, "the model failed to complete a prompt of a few tokens"):
            batch = Batch(self._model, self._reuse, requests, self._pad)
            self._loop.extend(batch, repeatability.STEPS, (recorder,))
        return [Probe.of(recorder, row, one.new) for row, one in enumerate(requests)]

    def _inputs(self, prompts: Sequence[Prompt]) -> list[Inputs]:
        return self._tokenizer.inputs(prompts, self._vocabulary)


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
