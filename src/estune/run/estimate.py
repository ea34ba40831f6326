"""Estimate a run before it begins: memory, part by part, for ES and for RL; and time from a speed.

The sizes of weights, θ and caches are computed. The overheads of Python, torch and the engines were
measured (docs/performance.md).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from estune.common.guard import guarded
from estune.config import ESConfig
from estune.errors import ConfigError, ModelError

Memory = dict[str, int]  # name of a part → its bytes

_MIB = 1 << 20
_LIBRARIES = 326 * _MIB  # bytes of a process that has loaded torch, transformers and the kernels
_GENERATING = 50 * _MIB  # bytes that transformers needs in addition to what grows with the batch
_VLLM = 500 * _MIB  # bytes that vLLM on a CPU needs in addition to weights and cache
_VLLM_CHECK = 0.75  # memory for checking vLLM's first members, as a fraction of θ
_CUDA = 600 * _MIB  # bytes on each GPU for the CUDA context and the libraries' kernels
# RL's activations: bytes per token, layer and hidden unit in 16 bits (Korthikanti et al. 2022,
# https://arxiv.org/abs/2205.05198).
_ACTIVATIONS = 34
_LOGITS = 3  # copies of the logits in fp32 that RL holds during a backward pass
_RL_BATCH = 8  # completions per backward pass, TRL's default
# Time for loading, updating and scoring, as a fraction of the time for generating; measured on two
# cores (docs/log.md).
OVERHEAD = 0.03


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide how much memory it takes."""

    parameters: int
    tuned: int  # parameters that ES tunes
    layers: int
    width: int  # hidden units
    cached: int  # numbers per token and layer in the cache of keys and values
    vocabulary: int
    stored: int  # bytes per weight in the checkpoint
    # Of a mixture of experts: a value of target_parameters → the weights that it chooses.
    parts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What each member does in a step: prompts, tokens per prompt, mean tokens per completion."""

    prompts: int
    prompt_tokens: int
    completion_tokens: float


@dataclass(frozen=True)
class Speed:
    """The speed of one engine, and the time that a step takes besides generating."""

    tokens: float  # completion tokens per second
    overhead: float = OVERHEAD  # as a fraction of generation time
    fixed: float = 0.0  # seconds per step in the trainer


def shape_of(model: str, config: ESConfig, revision: str | None = None) -> Shape:
    """Return the shape of a hub id, a folder, a .gguf file or a config.json.

    No weights are read or downloaded, except to convert a GGUF file.

    Raises:
        ModelError: there is no such model, or transformers cannot build it.
    """
    from estune.theta.architectures import outside_language, sees
    from estune.theta.parameters import empty_model
    from estune.theta.presets import routers

    found = _model_config(model, revision, config.trust_remote_code)
    with guarded(ModelError, f"{model}: transformers cannot build it", "or give --parameters"):
        empty = empty_model(found, trust_remote_code=config.trust_remote_code)
        left_out = outside_language(empty) if sees(found) else set()
    parameters = dict(empty.named_parameters())
    usual = {name: one for name, one in parameters.items() if id(one) not in left_out}
    tuned = sum(one.numel() for one in usual.values())
    parts: dict[str, int] = {}
    if config.target_parameters is not None or routers(empty):
        names = _NamesInFiles.of(empty, parameters, usual)
        parts = names.parts()
        if config.target_parameters is not None:
            tuned = names.weights(config.target_parameters)
    text = found.get_text_config()
    return Shape(
        parameters=sum(one.numel() for one in parameters.values()),
        tuned=tuned,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        cached=_cached(text),
        vocabulary=text.vocab_size,
        stored=found.dtype.itemsize if found.dtype else 4,
        parts=parts,
    )


@dataclass(frozen=True)
class _NamesInFiles:
    """Weights per tensor of a checkpoint, by the names that transformers would save.

    usual: those that are tuned if `target_parameters` is not set.
    routers: those in the routers of a mixture of experts.
    """

    sizes: dict[str, int]
    usual: list[str]
    routers: list[str]

    @classmethod
    def of(
        cls, model: Any, parameters: Mapping[str, Any], usual: Mapping[str, Any]
    ) -> "_NamesInFiles":
        """Return the names for the parameters inside a model on the meta device."""
        from transformers.core_model_loading import revert_weight_conversion

        from estune.theta.presets import routers

        routing = {name: parameters[name] for name in routers(model) & {*parameters}}
        with guarded(ModelError, "transformers does not say how it saves this model"):
            saved, chosen, routed = (
                revert_weight_conversion(model, dict(some)) for some in (parameters, usual, routing)
            )
        return cls({name: one.numel() for name, one in saved.items()}, [*chosen], [*routed])

    def weights(self, patterns: list[str]) -> int:
        """Return how many weights `target_parameters` chooses."""
        from estune.theta.presets import chosen

        names = chosen(patterns, [*self.sizes], self.usual, self.routers)
        return sum(self.sizes[name] for name in names)

    def parts(self) -> dict[str, int]:
        """Return the weights of some values of `target_parameters` in a mixture of experts."""
        from estune.theta.presets import ROUTERS, SHARED

        parts = {}
        for pattern in (ROUTERS, SHARED, "self_attn"):
            with suppress(ConfigError):  # this model has none
                parts[pattern] = self.weights([pattern]) if self.routers else 0
        return {pattern: count for pattern, count in parts.items() if count}


def _model_config(model: str, revision: str | None, trusted: bool) -> Any:
    from transformers import AutoConfig

    from estune.theta.checkpoint import resolve

    if Path(model).name == "config.json":
        folder = Path(model).parent
    else:
        folder = resolve(model, revision, trust_remote_code=trusted, weights=False)
    with guarded(ModelError, f"{model}: its config cannot be read", "or give --parameters"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)


def shape_like(parameters: float) -> Shape:
    """Return the shape of a typical model with this many parameters, in 16 bits.

    "Typical" means: the width is 128 · layers, a layer has 12 · width² parameters, there are a
    quarter as many key and value heads as query heads, and the vocabulary has 128,000 tokens.
    """
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    width = 128 * layers
    count = int(parameters)
    return Shape(count, count, layers, width, cached=width // 2, vocabulary=128_000, stored=2)


def es_on_cpu(shape: Shape, config: ESConfig, work: Workload, itemsize: int) -> Memory:
    """Return the memory of a run with one engine on a machine without a GPU."""
    parts = {
        "libraries": _LIBRARIES,
        "θ, fp32": 4 * shape.tuned,
        "weights": itemsize * shape.parameters,
    }
    if config.engine == "vllm":
        from estune.engines.vllm_settings import CPU_CACHE

        parts["cache"] = (config.engine_kwargs or {}).get("kv_cache_memory_bytes", CPU_CACHE)
        parts["vLLM"] = _VLLM + int(_VLLM_CHECK * 4 * shape.tuned)
        return parts
    cache = _cache(shape, config, work, itemsize)
    generating = _GENERATING + _logits(shape, config, work, itemsize)
    # Saving converts θ to the checkpoint's dtype, which takes a copy unless that is fp32.
    saving = shape.stored * shape.parameters if shape.stored < 4 else 0
    return parts | {"cache": cache, "generating or saving": max(generating, saving - cache)}


def es_on_gpu(
    shape: Shape, config: ESConfig, work: Workload, itemsize: int
) -> tuple[Memory, Memory]:
    """Return the memory taken on each GPU, and in the machine's own memory, which holds θ.

    The cache has room for one batch; vLLM makes it as large as its part of the GPU allows.
    """
    gpus = config.vllm_tensor_parallel_size
    device = {
        "weights": itemsize * shape.parameters // gpus,
        "cache": _cache(shape, config, work, itemsize) // gpus,
        "generating": _logits(shape, config, work, itemsize),
        "CUDA": _CUDA,
    }
    return device, {"θ, fp32": 4 * shape.tuned, "libraries": _LIBRARIES}


def rl(shape: Shape, work: Workload, itemsize: int) -> Memory:
    """Return the least memory that GRPO takes: with a reference model, and Adam in fp32."""
    tokens = _RL_BATCH * (work.prompt_tokens + work.completion_tokens)
    activations = tokens * shape.layers * shape.width * _ACTIVATIONS * itemsize // 2
    logits = _LOGITS * _RL_BATCH * work.completion_tokens * shape.vocabulary * 4
    return {
        "weights": itemsize * shape.parameters,
        "gradients, fp32": 4 * shape.parameters,
        "Adam, fp32": 8 * shape.parameters,
        "reference model": itemsize * shape.parameters,
        "activations": int(activations + logits),
    }


def tokens_per_step(config: ESConfig, work: Workload) -> float:
    """Return the completion tokens per step."""
    candidates = 2 if config.learning_rate == "auto" else 0
    evaluated = config.population_size + candidates
    return evaluated * work.prompts * work.completion_tokens


def seconds_per_step(config: ESConfig, work: Workload, speed: Speed, engines: int) -> float:
    """Return the wall time per step if no engine ever waits."""
    generating = tokens_per_step(config, work) / (speed.tokens * engines)
    return generating * (1 + speed.overhead) + speed.fixed


def measured_speed(records: Sequence[Mapping[str, Any]]) -> tuple[Speed, float]:
    """Return the speed of a run and its mean completion length, from its metrics.

    Both are medians over all steps except the first, which includes compilation.

    Raises:
        ConfigError: the run has not finished a step.
    """
    steps = [record for record in records if record.get("es/generate_seconds")]
    if not steps:
        raise ConfigError("measured: the run has not finished a step yet; wait for the first one")
    tokens = [after - before for before, after in pairwise([0, *_column(steps, "num_tokens")])]
    if len(steps) > 1:
        steps, tokens = steps[1:], tokens[1:]
    generating = _column(steps, "es/generate_seconds")
    loading = _column(steps, "es/load_seconds")
    speed = Speed(
        tokens=median(count / seconds for count, seconds in zip(tokens, generating, strict=True)),
        overhead=median(load / own for load, own in zip(loading, generating, strict=True)),
        fixed=median(map(_fixed_seconds, steps)),
    )
    return speed, median(_column(steps, "completions/mean_length"))


def _column(steps: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [record[name] for record in steps]


def _fixed_seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds of a step that the trainer spends outside the engines.

    Several engines work at the same time, and their seconds are added up, so subtracting them can
    give too little. The time of the update is then the best estimate.
    """
    rest = record["step_time"] - record["es/generate_seconds"] - record["es/load_seconds"]
    return float(max(rest, record["es/update_seconds"]))


def _cached(text: Any) -> int:
    """Return how many numbers a token's keys and values have per layer; 0 without attention."""
    heads = getattr(text, "num_attention_heads", None) or 0
    head_size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return 2 * (getattr(text, "num_key_value_heads", None) or heads) * head_size


def _cache(shape: Shape, config: ESConfig, work: Workload, itemsize: int) -> int:
    """Return the bytes of the cache of keys and values for one batch."""
    length = work.prompt_tokens + config.max_completion_length
    return itemsize * shape.layers * shape.cached * length * _batch(config, work)


def _logits(shape: Shape, config: ESConfig, work: Workload, itemsize: int) -> int:
    """Return the bytes of a batch's logits: one copy in the engine's dtype and two in fp32."""
    return (itemsize + 2 * 4) * shape.vocabulary * _batch(config, work)


def _batch(config: ESConfig, work: Workload) -> int:
    """Return how many sequences are generated at a time."""
    vllm_limit = 256
    limit = vllm_limit if config.engine == "vllm" else config.generation_batch_size
    return min(work.prompts, limit)
