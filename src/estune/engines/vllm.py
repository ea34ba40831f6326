"""Generation with vLLM, in this process, or in one process a GPU when tensors are split over several.

Weights go in by their names in the checkpoint, through vLLM's own reloading: packed, fused, tied and split weights are
its business, and their addresses stay, so that CUDA graphs remain valid. Where that was found to do the same, they are
written straight to where reloading puts them. Each process of the engine maps θ and writes the member's weights by
itself: a seed travels, weights don't. Whatever of vLLM changes between its versions is used here and in vllm_direct_writer.py.
"""

import importlib.metadata
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estune.common.guard import guarded
from estune.common.resources import cores, give_back, keep_freed
from estune.common.types import (
    Completion,
    Prompt,
    Sampling,
    Variant,
    variant_from_json,
    variant_to_json,
)
from estune.config import ESConfig
from estune.engines.device import engine_device, engine_dtype
from estune.engines.repeatability import PROMPTS, STEPS
from estune.engines.sampling import sample_seeds
from estune.engines.tokens import Tokenizer
from estune.engines.vllm_copy_trace import Copies
from estune.engines.vllm_direct_writer import DirectWriter, responses
from estune.engines.vllm_environment import set_environment, unseen
from estune.errors import ConfigError, EngineError, ModelError
from estune.theta.checkpoint import Checkpoint, open_checkpoint
from estune.theta.parameters import Layout
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta

logger = logging.getLogger(__name__)
TESTED = ("0.32.0",)  # versions that the tests pass with
_CPU_CACHE = 4 << 30  # bytes for keys and values on a CPU
_LOGGED = 300  # characters of vLLM's errors to repeat


class VLLMEngine:
    """A causal LM of vLLM as an engine.

    Args:
        checkpoint: the base model; its files are loaded.
        layout: which of its tensors are parameters.
        config: dtype, stop strings, template settings, `vllm_…` and `engine_kwargs` are taken from it.
        tokenizer: used instead of the one in the folder.

    Raises:
        ConfigError: vLLM is not installed, lacks what is needed, or does not know an engine_kwarg.
        ModelError: the model does not load.
    """

    def __init__(
        self, checkpoint: Checkpoint, layout: Layout, config: ESConfig, tokenizer: Any = None
    ) -> None:
        self._checkpoint, self._aliases = checkpoint, layout.aliases
        self._tokenizer = Tokenizer(checkpoint.folder, config, tokenizer)
        self._ranks = config.vllm_tensor_parallel_size
        self._attached: Address | Theta | None = None
        self._proven = False
        self._llm = _built(checkpoint, config)
        with guarded(EngineError, f"vLLM {_version()} does not say what model it loaded"):
            self._context_length = int(self._llm.llm_engine.model_config.max_model_len)
            self._vocabulary = int(self._llm.llm_engine.model_config.get_vocab_size())
        self._end = {token for token in self._tokenizer.ends() if token < self._vocabulary}

    @property
    def context_length(self) -> int:
        return self._context_length

    def load(self, theta: Theta, variant: Variant) -> None:
        self._attach(theta)
        self._everywhere("estune_load", variant_to_json(variant))
        self._reset_cache()

    def check(self, theta: Theta, variant: Variant) -> None:
        """Load other weights, then the member's again: everything must change, and change back; all must be taken.

        Once also that the model answers, and twice the same.
        """
        self._attach(theta)
        taken: Counter[str] = Counter()
        for watched in self._everywhere("estune_check", variant_to_json(variant)):
            for name, count in watched.items():
                taken[name] += count
        self._reset_cache()
        for name, values in theta.tensors.items():
            if taken[name] < values.numel():
                raise EngineError(
                    f"vLLM took {taken[name]:,} of the {values.numel():,} weights in {name}"
                )
        if not self._proven:
            self._check_answers()
            self._proven = True

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(ids) for ids in self._tokenizer.encode(prompts, self._vocabulary)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        encoded = self._tokenizer.encode(prompts, self._vocabulary)
        budget = min(max_completion_length, self.context_length - max(map(len, encoded), default=0))
        stops = self._tokenizer.stops
        settings = {
            "temperature": 0.0,
            "max_tokens": budget,
            "stop": stops.strings,
            "stop_token_ids": sorted(self._end),
        }
        settings |= {
            "ignore_eos": True
        }  # it would end on what it takes for end tokens by itself; ours are all in stop_token_ids
        settings |= {
            "skip_special_tokens": not stops.special
        }  # else it does not see stop strings that name one
        each = [settings] * len(encoded)
        if sampling:  # one request a sample, with a seed of its own; they share the prompt's cache
            drawn = settings | {"temperature": sampling.temperature, "top_p": sampling.top_p}
            each = [
                drawn | {"seed": seed} for ids in encoded for seed in sample_seeds(ids, sampling)
            ]
            encoded = [ids for ids in encoded for _ in range(sampling.n)]
        parts = self._parts(encoded) if sampling else [slice(None)]
        new = [
            list(output.outputs[0].token_ids)
            for part in parts
            for output in self._answers(encoded[part], each[part])
        ]
        finite = all(self._everywhere("estune_finite"))  # of the member as a whole
        if not finite:
            self._everywhere("estune_empty_cache")
            self._reset_cache()
        return [
            replace(self._tokenizer.completion(ids, self._end, budget), finite=finite)
            for ids in new
        ]

    def _check_answers(self) -> None:
        """Raises ModelError when vLLM loads the model, but lacks a kernel to run it on this machine, say."""
        room = max(1, self.context_length - STEPS)
        encoded = [[token % self._vocabulary for token in prompt][:room] for prompt in PROMPTS]
        settings = {
            "temperature": 0.0,
            "max_tokens": STEPS,
            "ignore_eos": True,
            "detokenize": False,
        }
        answers = []
        for _ in range(2):
            try:
                outputs = self._answers(encoded, [settings] * len(encoded))
            except EngineError as error:
                raise ModelError(
                    f"{self._checkpoint.folder}: {error}; use engine: transformers for this model"
                ) from error
            answers.append([list(output.outputs[0].token_ids) for output in outputs])
            self._reset_cache()
        if answers[0] != answers[1]:
            logger.warning(
                "vLLM answers the same prompts otherwise each time, so rewards may differ from run to run"
            )
        if not all(self._everywhere("estune_finite")):
            self._everywhere("estune_empty_cache")

    def _parts(self, encoded: list[list[int]]) -> list[slice]:
        """On a CPU vLLM 0.32 cannot draw for a prompt that it reads in two goes, so no more are given at once than it reads in one."""
        config = self._llm.llm_engine.vllm_config
        if config.device_config.device_type != "cpu":
            return [slice(None)]
        starts, taken, room = [0], 0, config.scheduler_config.max_num_batched_tokens
        for position, ids in enumerate(encoded):
            if taken + len(ids) > room and taken:
                starts, taken = [*starts, position], 0
            taken += len(ids)
        return [
            slice(start, stop)
            for start, stop in zip(starts, [*starts[1:], len(encoded)], strict=True)
        ]

    def _answers(self, encoded: list[list[int]], settings: list[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        try:
            requests = [{"prompt_token_ids": ids} for ids in encoded]
            answers: list[Any] = self._llm.generate(
                requests, [SamplingParams(**one) for one in settings], use_tqdm=False
            )
            return answers
        except Exception as error:  # a lost worker, memory, a refused request: vLLM has many kinds
            raise EngineError(f"vLLM failed to generate ({_reason(error)})") from error

    def _reset_cache(self) -> None:
        """Within one member the cache is worth having, since prompts share beginnings; it must not outlive its weights."""
        with guarded(EngineError, "vLLM failed to empty its prefix cache"):
            empty = self._llm.reset_prefix_cache()
        if not empty:
            raise EngineError(
                "vLLM kept its prefix cache, which holds what other weights computed; a request is still running"
            )

    def _attach(self, theta: Theta) -> None:
        """Let each of the engine's processes map the centre. One on a device is in this process, and so is the engine then."""
        if theta.address is None and not theta.on_device:
            raise EngineError(
                "the centre is not shared, so vLLM's processes cannot read it; load it with share=True"
            )
        where = theta.address or theta
        if where != self._attached:
            sent = where if isinstance(where, Theta) else vars(where)
            self._everywhere(
                "estune_attach", sent, str(self._checkpoint.folder), self._aliases, self._ranks
            )
            self._attached = where

    def _everywhere(self, method: str, *arguments: Any) -> list[Any]:
        try:
            results: list[Any] = self._llm.collective_rpc(method, args=arguments)
            return results
        except (EngineError, ModelError):
            raise
        except (
            Exception
        ) as error:  # from another process it comes as a string in one of several kinds
            raise EngineError(
                f"vLLM failed to take a member's weights ({_reason(error)})"
            ) from error


class Shard:
    """Mixed into each of vLLM's worker processes: reads θ and loads members there."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    _estune_all_finite = torch.tensor(True)  # ()
    _estune_places: DirectWriter | None = (
        None  # once it was proven that members can be written straight there
    )

    def estune_attach(
        self, theta: dict[str, Any] | Theta, folder: str, aliases: dict[str, str], ranks: int
    ) -> None:
        """Map the centre. What ES does not tune is read from the files in `folder`."""
        threads = max(1, cores() // ranks)
        self._estune_theta = (
            theta if isinstance(theta, Theta) else Theta.attach(Address(**theta), threads=threads)
        )
        checkpoint = open_checkpoint(Path(folder))
        theta = self._estune_theta.tensors
        frozen = [name for name in checkpoint.tensors if aliases.get(name, name) not in theta]
        self._estune_frozen = [(name, checkpoint.read(name)) for name in frozen]
        self._estune_dtypes: dict[str, torch.dtype] = {}
        self._estune_places = None
        self._estune_watch_logits(self.model_runner.get_model())

    def estune_finite(self) -> bool:
        """Whether the largest logits were finite throughout since this was last asked."""
        finite, self._estune_all_finite = bool(self._estune_all_finite), torch.tensor(True)
        return finite

    def estune_empty_cache(self) -> None:
        """Put zeros where a member left NaN: attention gives a slot that holds no token the weight 0, and 0 · NaN is NaN again."""
        for layer in self.model_runner.kv_caches:
            for cache in layer if isinstance(layer, (list, tuple)) else [layer]:
                cache.zero_()

    def _estune_watch_logits(self, model: Any) -> None:
        self._estune_all_finite = torch.tensor(True)
        model.__dict__.pop("compute_logits", None)  # an earlier centre's
        compute = model.compute_logits

        def watched(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if (
                logits is not None and logits.numel()
            ):  # of a tensor-parallel engine only some ranks have them
                self._estune_all_finite = (
                    self._estune_all_finite.to(logits.device)
                    & torch.isfinite(logits.amax(-1)).all()
                )
            return logits

        model.compute_logits = watched

    def estune_load(self, record: dict[str, Any]) -> None:
        """Take the member's weights. Raises EngineError when one was not taken."""
        if self._estune_places is None:
            return self._estune_reload(self._estune_weights(variant_from_json(record)))
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config), torch.inference_mode():
            self._estune_places.load(
                self._estune_theta, variant_from_json(record), self._estune_frozen
            )

    def estune_check(self, record: dict[str, Any]) -> dict[str, int]:
        """Load other weights, then the member. Returns how many weights of each parameter vLLM copied, and learns where and in
        what dtype it holds them.

        Raises:
            EngineError: some part of the model did not change with its weights, or the member was not what was held.
        """
        self._estune_dtypes, self._estune_places = {}, None
        model = self.model_runner.get_model()
        held = responses(model)
        self._estune_reload(
            (name, tensor + 1) for name, tensor in self._estune_weights(variant_from_json(record))
        )
        changed = responses(model)
        with Copies(model) as copies:
            self._estune_reload(copies.each(self._estune_weights(variant_from_json(record))))
        again = responses(model)
        for name, response in held.items():
            if torch.equal(response, changed[name]):
                raise EngineError(f"vLLM does not take new weights in {name}")
            if not torch.equal(response, again[name]):
                whose = "θ's" if record["kind"] == "Unperturbed" else "the member's"
                raise EngineError(
                    f"the engine does not hold {whose} weights in {name}; its layout differs from the files'"
                )
        self._estune_dtypes = copies.dtypes
        self._estune_try(
            DirectWriter.learn(copies, model, self._estune_theta.tensors), record, again
        )
        give_back()
        if self._estune_places and self.device.type == "cpu":
            keep_freed()
        return dict(copies.taken)

    def _estune_try(
        self, places: DirectWriter | None, record: dict[str, Any], wanted: dict[str, torch.Tensor]
    ) -> None:
        """Write members straight to `places` from now on, if that turns other weights into the member's as reloading does."""
        if places is None:
            return
        self._estune_reload(
            (name, tensor + (name in self._estune_theta.tensors))
            for name, tensor in self._estune_weights(variant_from_json(record))
        )
        self._estune_places = places
        self.estune_load(record)
        found = responses(self.model_runner.get_model())
        if not all(torch.equal(response, found[name]) for name, response in wanted.items()):
            self._estune_places = None
            self.estune_load(record)

    def _estune_weights(self, variant: Variant) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._estune_frozen
        yield from self._estune_theta.perturbed(variant, self._estune_room)

    def _estune_room(self, name: str) -> torch.Tensor:
        """Where a parameter is written, new each time: vLLM keeps it until all that is fused with it has come."""
        theta, dtype = self._estune_theta.tensors[name], self._estune_dtypes.get(name)
        return torch.empty(
            theta.shape, dtype=dtype or torch.float32, device=self.device if dtype else None
        )  # fp32 may not fit there

    def _estune_reload(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """vLLM's own `reload_weights`, which only warns of what was not loaded."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config), torch.inference_mode():
            wanted = {name for name, _ in model.named_parameters()}  # while tied ones are still one
            initialize_layerwise_reload(model)
            try:
                loaded = model.load_weights(weights)
            finally:  # when a member overflows too, so that the next one finds the model whole
                finalize_layerwise_reload(model, self.vllm_config.model_config)
            for module in _tied(model):
                module.quant_method.process_weights_after_loading(module)
        if loaded is not None and (missed := sorted(wanted - loaded)):
            raise EngineError(
                f"vLLM did not load {len(missed)} of its parameters, {missed[0]} among them"
            )


def _tied(model: torch.nn.Module) -> list[Any]:
    """Output layers that share the input embedding: vLLM's reload passes over them, although on a CPU they are packed apart."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return [
        head
        for head in model.modules()
        if isinstance(head, ParallelLMHead) and _shared(model, head)
    ]


def _shared(model: torch.nn.Module, head: torch.nn.Module) -> bool:
    mine = {id(parameter) for parameter in head.parameters()}
    return any(
        module is not head and mine & {id(p) for p in module.parameters(recurse=False)}
        for module in model.modules()
    )


def _built(checkpoint: Checkpoint, config: ESConfig) -> Any:
    """The `vllm.LLM`."""
    on_cpu = engine_device(config) == "cpu"
    set_environment(config, on_cpu)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        from vllm import LLM
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload  # noqa: F401
    except ImportError as error:
        raise ConfigError(_unusable(error)) from None
    except (
        Exception
    ) as error:  # an installation that does not fit the machine or the other packages
        raise ConfigError(
            f"engine: vLLM {_version()} cannot be imported ({_reason(error)})"
        ) from error
    try:
        with unseen("llvmlite.binding.ffi"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LLM(**_settings(checkpoint, config, on_cpu))
    except TypeError as error:
        raise ConfigError(
            f"engine_kwargs: vLLM {_version()} does not take them ({_reason(error)})"
        ) from None
    except (
        Exception
    ) as error:  # a model that it does not know, memory, a head count that does not divide
        raise ModelError(
            f"{checkpoint.folder}: vLLM {_version()} cannot load this model ({_reason(error)})"
        ) from error


def _settings(checkpoint: Checkpoint, config: ESConfig, on_cpu: bool) -> dict[str, Any]:
    ranks = config.vllm_tensor_parallel_size
    settings: dict[str, Any] = {
        "model": str(checkpoint.folder),
        "dtype": str(engine_dtype(config)).removeprefix("torch."),
        "tensor_parallel_size": ranks,
        "max_model_len": config.vllm_max_model_length,
        "enforce_eager": config.vllm_enforce_eager,
        "model_impl": config.vllm_model_impl,
        "trust_remote_code": config.trust_remote_code,
        "generation_config": "vllm",  # greedy means the most likely token: nothing of the model's own sampling settings
        "worker_extension_cls": f"{Shard.__module__}.{Shard.__qualname__}",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if config.vllm_gpu_memory_utilization is not None:
        settings["gpu_memory_utilization"] = config.vllm_gpu_memory_utilization
    elif on_cpu and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        settings["kv_cache_memory_bytes"] = _CPU_CACHE
    if ranks > 1:
        settings["distributed_executor_backend"] = "mp"
    return settings | (config.engine_kwargs or {})


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(version unknown)"


def _unusable(error: ImportError) -> str:
    if error.name == "vllm":
        return 'engine: vllm is not installed; pip install "estune[vllm]" (on a machine without a GPU: see docs/engines.md)'
    tested = ", ".join(TESTED)
    return f"engine: vLLM {_version()} lacks what estune needs of it ({_reason(error)}); tested with {tested}"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LOGGED] or type(error).__name__
