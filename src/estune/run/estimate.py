"""What a run will take, before it is begun: memory by part, and hours and money from a speed; what RL would take beside it.

Weights, θ and caches are arithmetic. What Python, torch and the engines take beside them was measured (docs/performance.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.config import ESConfig
from estune.errors import ConfigError, ModelError
from estune.theta.parameters import matches

Parts = dict[str, int]  # what → bytes

_MIB = 1 << 20
_LIBRARIES = 326 * _MIB  # of a process, once torch, transformers and the kernels are loaded
_GENERATING = 50 * _MIB  # of transformers beside what grows with the batch
_VLLM = 500 * _MIB  # of vLLM on a CPU beside weights and cache, with what waits to be packed
_VLLM_CHECK = 0.75  # of θ: what its first members take, whose dtypes are not known yet
_VLLM_CACHE = 4 << 30  # on a CPU, where nothing else is asked for
_CUDA = 600 * _MIB  # of a GPU: its context and the libraries' kernels
_ACTIVATIONS = 34  # bytes a token, layer and hidden number in 16 bits (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198)
_LOGITS = 3  # copies of the logits in fp32 that a policy gradient's step holds
_RL_BATCH = 8  # completions whose gradients are taken at a time, TRL's default
OVERHEAD = (
    0.03  # of generating: loading, updating and scoring, as measured on two cores (docs/log.md)
)


@dataclass(frozen=True)
class Shape:
    """What of a model counts: `cached` numbers a token and layer in the cache of keys and values."""

    parameters: int
    tuned: int
    layers: int
    width: int
    cached: int
    vocabulary: int
    stored: int  # bytes of a weight in the checkpoint


@dataclass(frozen=True)
class Work:
    """What is asked: `prompts` a member and step, of `prompt_tokens`, answered with `completion_tokens` on the average."""

    prompts: int
    prompt_tokens: int
    completion_tokens: float


@dataclass(frozen=True)
class Speed:
    """Completion tokens a second of one engine, what it does beside generating, in parts of that, and the trainer's own seconds a step."""

    tokens: float
    overhead: float = OVERHEAD
    fixed: float = 0.0


def shape_of(model: str, config: ESConfig, revision: str | None = None) -> Shape:
    """Of a hub id, a folder, a .gguf file or a config.json; weights are neither read nor fetched, except to convert a GGUF.

    Raises:
        ModelError: there is no such model, or transformers cannot build it.
    """
    import torch

    from estune.theta.checkpoint import resolve

    path, trusted = Path(model), config.trust_remote_code
    folder = (
        path.parent
        if path.name == "config.json"
        else resolve(model, revision, trust_remote_code=trusted, weights=False)
    )
    with guarded(ModelError, f"{model}: its config cannot be had", "or give --parameters"):
        from transformers import AutoConfig, AutoModelForCausalLM

        found = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(found, trust_remote_code=trusted)
        empty.tie_weights()
    sizes = {name: parameter.numel() for name, parameter in empty.named_parameters()}
    patterns = config.target_parameters
    tuned = sum(size for name, size in sizes.items() if patterns is None or matches(patterns, name))
    text = found.get_text_config()
    stored = (found.dtype or torch.float32).itemsize
    return Shape(
        sum(sizes.values()),
        tuned,
        text.num_hidden_layers,
        text.hidden_size,
        _cached(text),
        text.vocab_size,
        stored,
    )


def shape_like(parameters: float) -> Shape:
    """Of an imagined model of so many parameters: 128 hidden numbers a layer, 12·width² parameters in each, as such models
    have, a quarter as many keys and values, a vocabulary of 128,000."""
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    return Shape(
        int(parameters), int(parameters), layers, 128 * layers, 128 * layers // 2, 128_000, 2
    )


def es_here(shape: Shape, config: ESConfig, work: Work, itemsize: int) -> Parts:
    """Memory of a run on a machine without a GPU, one engine."""
    parts = {
        "libraries": _LIBRARIES,
        "θ, fp32": 4 * shape.tuned,
        "weights": itemsize * shape.parameters,
    }
    if config.engine == "vllm":
        parts |= {
            "cache": (config.engine_kwargs or {}).get("kv_cache_memory_bytes", _VLLM_CACHE),
            "vLLM": _VLLM + int(_VLLM_CHECK * 4 * shape.tuned),
        }
        return parts
    cache, generating = (
        _cache(shape, config, work, itemsize),
        _GENERATING + _logits(shape, config, work, itemsize),
    )
    writing = (
        shape.stored * shape.parameters if shape.stored < 4 else 0
    )  # a checkpoint's tensors, where they are no views of θ
    return parts | {"cache": cache, "generating or saving": max(generating, writing - cache)}


def es_on_gpu(shape: Shape, config: ESConfig, work: Work, itemsize: int) -> tuple[Parts, Parts]:
    """Memory of each GPU and of its machine, where θ is. The cache is the least that holds a batch; vLLM takes what is left."""
    weights = itemsize * shape.parameters // config.vllm_tensor_parallel_size
    cache = _cache(shape, config, work, itemsize) // config.vllm_tensor_parallel_size
    device = {
        "weights": weights,
        "cache": cache,
        "generating": _logits(shape, config, work, itemsize),
        "CUDA": _CUDA,
    }
    return device, {"θ, fp32": 4 * shape.tuned, "libraries": _LIBRARIES}


def rl(shape: Shape, work: Work, itemsize: int) -> Parts:
    """Memory of GRPO with a reference model, gradients and Adam in fp32, in all: what it cannot do without, so that it takes more."""
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


def tokens_a_step(config: ESConfig, work: Work) -> float:
    """Completion tokens of all members; with `learning_rate: auto` two more are evaluated."""
    members = config.population_size + (2 if config.learning_rate == "auto" else 0)
    return members * work.prompts * work.completion_tokens


def seconds_a_step(config: ESConfig, work: Work, speed: Speed, engines: int) -> float:
    """Of wall time, all engines being busy throughout."""
    return (
        tokens_a_step(config, work) / (speed.tokens * engines) * (1 + speed.overhead) + speed.fixed
    )


def measured(records: Sequence[Mapping[str, Any]]) -> tuple[Speed, float]:
    """The speed of a run and its mean completion length, from its metrics: medians over steps but the first, which compiles.

    Raises:
        ConfigError: there is no step.
    """
    from statistics import median

    steps = [record for record in records if record.get("es/generate_seconds")]
    if not steps:
        raise ConfigError("measured: the run has no step yet; wait for one")
    before = [0, *(record["num_tokens"] for record in steps)]
    rates = [
        (record["num_tokens"] - tokens) / record["es/generate_seconds"]
        for record, tokens in zip(steps, before, strict=False)
    ]
    steps, rates = steps[1:] or steps, rates[1:] or rates
    loading = [record["es/load_seconds"] / record["es/generate_seconds"] for record in steps]
    # engines' seconds are added up: of one, all else that a step takes is left; of several less than nothing, so that the update counts
    rest = [
        record["step_time"] - record["es/generate_seconds"] - record["es/load_seconds"]
        for record in steps
    ]
    fixed = [
        max(left, record["es/update_seconds"]) for left, record in zip(rest, steps, strict=True)
    ]
    return Speed(median(rates), median(loading), median(fixed)), median(
        record["completions/mean_length"] for record in steps
    )


def _cached(text: Any) -> int:
    """Keys and values of a token and layer; none where there is no attention, as in Mamba."""
    heads = getattr(text, "num_attention_heads", None) or 0
    head = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return 2 * (getattr(text, "num_key_value_heads", None) or heads) * head


def _cache(shape: Shape, config: ESConfig, work: Work, itemsize: int) -> int:
    length = work.prompt_tokens + config.max_completion_length
    return itemsize * shape.layers * shape.cached * length * _batch(config, work)


def _logits(shape: Shape, config: ESConfig, work: Work, itemsize: int) -> int:
    return (2 * 4 + itemsize) * shape.vocabulary * _batch(config, work)


def _batch(config: ESConfig, work: Work) -> int:
    """Sequences at a time: vLLM's own limit is far above transformers' batch."""
    most = 256 if config.engine == "vllm" else config.generation_batch_size
    return min(work.prompts, most)
