"""Generation with vLLM: in this process, or with one process per GPU when tensors are split.

The engine sends each of vLLM's worker processes the few numbers that describe a variant of θ. These
processes map θ and write the variant's weights (`vllm_worker.py`); weights are never sent. Only the
`vllm…` files in this folder use parts of vLLM that change between its versions.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import torch

from estune.common.guard import guarded, reason
from estune.common.types import (
    Completion,
    ExpertCounts,
    Prompt,
    Request,
    Sampling,
    Variant,
    variant_to_json,
)
from estune.config import ESConfig
from estune.engines.base import budget_of
from estune.engines.repeatability import PROMPTS, STEPS
from estune.engines.sampling import sample_seeds
from estune.engines.stops import Stops
from estune.engines.tokens import Tokenizer
from estune.engines.vision import Inputs
from estune.engines.vllm_proof import LogitsProof
from estune.engines.vllm_settings import llm_arguments, set_environment
from estune.engines.vllm_start import start_vllm, version
from estune.engines.vllm_weight_map import kind_of
from estune.engines.vllm_worker import WorkerExtension
from estune.errors import EngineError, ModelError
from estune.theta.checkpoint import Checkpoint
from estune.theta.parameters import Layout
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta

logger = logging.getLogger(__name__)


class VLLMEngine:
    """A causal LM of vLLM as an engine.

    Args:
        checkpoint: the base model; its files are loaded.
        layout: which of its tensors are parameters.
        config: stop strings, template settings, `vllm_…` and `engine_kwargs` are taken from it.
        device: where to compute; "cpu", or vLLM chooses the GPU.
        dtype: the dtype to compute in.
        tokenizer: used instead of the one in the folder.

    Raises:
        ConfigError: vLLM is not installed, lacks what is needed, or does not know an engine_kwarg.
        ModelError: the model does not load.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        config: ESConfig,
        device: str,
        dtype: torch.dtype,
        tokenizer: Any = None,
    ) -> None:
        self._folder = checkpoint.folder
        self._aliases = layout.aliases
        self._tokenizer = Tokenizer(checkpoint.folder, config, tokenizer)
        self._ranks = config.vllm_tensor_parallel_size
        self._attached: Address | Theta | None = None
        self._checked = False
        self._loaded = False  # whether a variant replaced what vLLM loaded
        on_cpu = device == "cpu"
        set_environment(config, on_cpu)
        extension = f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}"
        arguments = llm_arguments(checkpoint.folder, config, on_cpu, dtype, extension)
        self._vision = layout.vision
        self._llm = start_vllm(checkpoint.folder, arguments, sees=layout.sees)
        with guarded(
            EngineError,
            f"vLLM {version()} does not report the model's context length and vocabulary",
        ):
            model_config = self._llm.llm_engine.model_config
            self._context_length = int(model_config.max_model_len)
            self._vocabulary = int(model_config.get_vocab_size())
        self._numbers = itertools.count()
        self._requests: dict[int, tuple[int, Stops]] = {}  # number → budget and stop strings
        self._end = {token for token in self._tokenizer.ends() if token < self._vocabulary}
        self._proof: LogitsProof | None = None
        if not all(self._in_workers("estune_familiar")):
            self._proof = LogitsProof(self._folder, self._in_workers, self._probe)

    @property
    def context_length(self) -> int:
        return self._context_length

    def load(self, theta: Theta, variant: Variant) -> None:
        self._attach(theta)
        self._loaded = True
        self._in_workers("estune_load", variant_to_json(variant))
        self._reset_cache()
        if self._vision & set(theta.tensors):
            # vLLM keeps what the vision tower computed, which now depends on the member.
            self._llm.llm_engine.reset_encoder_cache()

    def check(self, theta: Theta, variant: Variant) -> None:
        """Load other weights, then the variant's: everything must change, and change back.

        vLLM must also take every weight. The first time, also check that the model can generate,
        and that it generates the same twice.
        """
        self._attach(theta)
        if self._proof is None or self._checked:
            self._check_weights(theta, variant)
        else:
            try:
                self._check_weights(theta, variant)
            except EngineError as error:
                raise ModelError(
                    f"{self._folder}: {error}; use engine: transformers for this model"
                ) from error
        if not self._checked:
            self._check_repeatable()
            self._report_reloading(len(theta.tensors))
            self._checked = True

    def _check_weights(self, theta: Theta, variant: Variant) -> None:
        wanted = self._first_logits(variant)
        taken: Counter[str] = Counter()
        for counts in self._in_workers("estune_check", variant_to_json(variant)):
            taken.update(counts)
        self._reset_cache()
        for name, values in theta.tensors.items():
            if taken[name] < values.numel():
                raise EngineError(
                    f"vLLM took {taken[name]:,} of the {values.numel():,} weights in {name}"
                )
        if self._proof:
            self._proof.check_kinds(variant, theta.tensors, wanted)

    def expert_counts(self) -> ExpertCounts:
        return []

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode(prompts, self._vocabulary)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        encoded = self._tokenizer.inputs(prompts, self._vocabulary)
        budget = min(max_completion_length, self.context_length - max(map(len, encoded), default=0))
        settings = self._sampling_settings(budget, self._tokenizer.stops)
        if sampling is None:
            new = self._tokens(encoded, [settings] * len(encoded))
        else:
            new = self._drawn_tokens(encoded, settings, sampling)
        finite = self._finite()
        completions = [self._tokenizer.completion(ids, self._end, budget) for ids in new]
        return [replace(completion, finite=finite) for completion in completions]

    def submit(self, request: Request) -> int:
        from vllm import SamplingParams

        [inputs] = self._tokenizer.inputs([request.prompt], self._vocabulary)
        budget = budget_of(request.max_completion_length, len(inputs), self.context_length)
        stops = self._tokenizer.stops_with(request.stop)
        settings = self._sampling_settings(budget, stops)
        if sampling := request.sampling:
            [seed] = sample_seeds(inputs.ids, replace(sampling, n=1))
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        number = next(self._numbers)
        with guarded(EngineError, "vLLM refused a request"):
            self._llm.llm_engine.add_request(
                str(number), _request(inputs), SamplingParams(**settings)
            )
        self._requests[number] = budget, stops
        return number

    def step(self) -> list[tuple[int, Completion]]:
        if not self._requests:
            return []
        with guarded(EngineError, "vLLM failed to generate"):
            ended = [output for output in self._llm.llm_engine.step() if output.finished]
        if not ended:
            return []
        completions = []
        for output in ended:
            number, new = int(output.request_id), list(output.outputs[0].token_ids)
            budget, stops = self._requests.pop(number)
            completion = self._tokenizer.completion(new, self._end, budget, stops)
            completions.append((number, completion))
        finite = self._finite()
        return [(number, replace(one, finite=finite)) for number, one in completions]

    def abort(self, numbers: Container[int]) -> None:
        gone = [number for number in self._requests if number in numbers]
        with guarded(EngineError, "vLLM failed to abort a request"):
            self._llm.llm_engine.abort_request([str(number) for number in gone])
        for number in gone:
            del self._requests[number]
        if gone and not self._requests:
            self._llm.llm_engine.step()  # which frees their part of the cache

    def _finite(self) -> bool:
        """Whether the variant as a whole computed only finite numbers so far."""
        finite = all(self._in_workers("estune_finite"))
        if not finite and not self._requests:
            self._in_workers("estune_empty_cache")
            self._reset_cache()
        return finite

    def _sampling_settings(self, budget: int, stops: Stops) -> dict[str, Any]:
        """Return vLLM's settings for a greedy completion of at most `budget` tokens."""
        return {
            "temperature": 0.0,
            "max_tokens": budget,
            "stop": stops.strings,
            # All end tokens are here; vLLM would add those that it finds itself.
            "stop_token_ids": sorted(self._end),
            "ignore_eos": True,
            # Otherwise vLLM does not see stop strings that contain a special token.
            "skip_special_tokens": not stops.special,
        }

    def _drawn_tokens(
        self, encoded: list[Inputs], settings: dict[str, Any], sampling: Sampling
    ) -> list[list[int]]:
        """Draw completions: one request with its own seed each; they share the prompt's cache."""
        drawn = settings | {"temperature": sampling.temperature, "top_p": sampling.top_p}
        seeds = [seed for one in encoded for seed in sample_seeds(one.ids, sampling)]
        repeated = [one for one in encoded for _ in range(sampling.n)]
        new: list[list[int]] = []
        for part in self._parts(repeated):
            each = [drawn | {"seed": seed} for seed in seeds[part]]
            new += self._tokens(repeated[part], each)
        return new

    def _parts(self, encoded: list[Inputs]) -> list[slice]:
        """Split sampled requests into parts whose prompts vLLM processes in one pass.

        On a CPU vLLM 0.32 cannot draw for a prompt that it reads in two passes.
        """
        config = self._llm.llm_engine.vllm_config
        if config.device_config.device_type != "cpu":
            return [slice(None)]
        room = config.scheduler_config.max_num_batched_tokens
        starts = [0]
        tokens = 0
        for position, ids in enumerate(encoded):
            if tokens and tokens + len(ids) > room:
                starts.append(position)
                tokens = 0
            tokens += len(ids)
        return [slice(*ends) for ends in zip(starts, [*starts[1:], len(encoded)], strict=True)]

    def _tokens(self, encoded: list[Inputs], settings: list[dict[str, Any]]) -> list[list[int]]:
        """Return the new tokens of each request."""
        from vllm import SamplingParams

        requests = [_request(one) for one in encoded]
        try:
            parameters = [SamplingParams(**one) for one in settings]
            outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        except Exception as error:  # a lost worker, memory, a refused request: vLLM has many kinds
            raise EngineError(f"vLLM failed to generate ({reason(error)})") from error
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _first_logits(self, variant: Variant) -> list[Any]:
        """Return digests of the loaded variant's logits; [] if no proof is needed.

        Before the first check, if a variant has replaced the files' weights: check that reloading
        the files gives the logits of vLLM's own first load, then load the variant again.
        """
        if self._proof is None:
            return []
        if not self._checked and self._loaded:
            self._proof.check_reloading()
            self._in_workers("estune_load", variant_to_json(variant))
        return self._proof.logits()

    def _report_reloading(self, tensors: int) -> None:
        """Log which tensors vLLM reloads, since that is slower than writing them directly."""
        slow = set().union(*self._in_workers("estune_reloaded"))
        kinds = sorted(set(map(kind_of, slow)))
        if slow:
            logger.info(
                "vLLM writes %d of %d tensors of a member directly and reloads the others: %s",
                tensors - len(slow),
                tensors,
                ", ".join(kinds[:4]) + (" and more" if len(kinds) > 4 else ""),
            )
        elif self._proof:
            logger.info("vLLM writes all %d tensors of a member directly", tensors)

    def _probe(self) -> list[list[int]]:
        """Complete a few tokens.

        Raises:
            ModelError: vLLM loads the model but cannot run it on this machine, for example because
                it lacks a kernel.
        """
        room = max(1, self.context_length - STEPS)
        encoded = [
            Inputs([token % self._vocabulary for token in prompt][:room]) for prompt in PROMPTS
        ]
        settings = {
            "temperature": 0.0,
            "max_tokens": STEPS,
            "ignore_eos": True,
            "detokenize": False,
        }
        try:
            tokens = self._tokens(encoded, [settings] * len(encoded))
        except EngineError as error:
            raise ModelError(
                f"{self._folder}: {error}; use engine: transformers for this model"
            ) from error
        if not all(self._in_workers("estune_finite")):
            self._in_workers("estune_empty_cache")
        self._reset_cache()
        return tokens

    def _check_repeatable(self) -> None:
        """Generate a few tokens twice."""
        if self._probe() != self._probe():
            logger.warning(
                "vLLM completes the same prompts differently each time, "
                "so rewards may differ from run to run"
            )

    def _reset_cache(self) -> None:
        """Empty the prefix cache, which must not outlive the weights that it was computed with."""
        with guarded(EngineError, "vLLM failed to empty its prefix cache"):
            empty = self._llm.reset_prefix_cache()
        if not empty:
            raise EngineError(
                "vLLM kept its prefix cache, which holds what other weights computed; "
                "a request is still running"
            )

    def _attach(self, theta: Theta) -> None:
        """Let each worker map θ.

        A θ on a GPU cannot be mapped, but then the worker is in this process and gets the object.

        Raises:
            EngineError: θ is in memory that other processes cannot map.
        """
        if theta.address is None and not theta.on_device:
            raise EngineError(
                "θ is not shared, so vLLM's processes cannot read it; load it with share=True"
            )
        source = theta.address or theta
        if source != self._attached:
            sent = source if isinstance(source, Theta) else vars(source)
            folder = str(self._folder)
            self._in_workers("estune_attach", sent, folder, self._aliases, self._ranks)
            self._attached = source

    def _in_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `WorkerExtension` in every worker; return the results."""
        try:
            results: list[Any] = self._llm.collective_rpc(method, args=arguments)
        except (EngineError, ModelError):
            raise
        except Exception as error:  # vLLM passes another process's error on as text, in many kinds
            raise EngineError(
                f"vLLM failed to take a member's weights ({reason(error)})"
            ) from error
        return results


def _request(inputs: Inputs) -> dict[str, Any]:
    """Return a prompt in vLLM's form. vLLM processes images itself and caches the result."""
    if not inputs.pictures:
        return {"prompt_token_ids": inputs.ids}
    images = list(inputs.pictures)
    return {"prompt_token_ids": inputs.marked, "multi_modal_data": {"image": images}}
