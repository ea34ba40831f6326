"""Estimate a run before it starts: its memory and, given a speed, its time and price.

  estune plan --config run.yaml
  estune plan --config run.yaml --measured runs/quickstart
  estune plan --model_name_or_path Qwen/Qwen2.5-7B-Instruct --gpus 4 --tokens_per_second 9000
  estune plan --parameters 70e9 --gpus 16 --vllm_tensor_parallel_size 4

RL's memory is shown for comparison. No weights are read, only the model's config. Without --gpus
the estimate is for this machine's processor. --measured takes the speed and the length of
completions from a run's metrics. All settings of `estune train` are accepted too.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from estune.cli.settings import add_flags, read
from estune.config import RunConfig
from estune.errors import ConfigError

if TYPE_CHECKING:
    from estune.monitor.console import Screen
    from estune.run.estimate import Memory, Shape, Speed, Workload

SUMMARY = "estimate a run's memory, time and price"
USAGE = """estune plan [--config FILE ...] [--parameters P] [--gpus N]
                   [--tokens_per_second R | --measured RUN] [--SETTING VALUE ...]"""
_PROMPTS = 200  # per member and step, unless the settings limit them
_PROMPT_TOKENS = 128


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--parameters",
        metavar="P",
        type=float,
        help="plan for a model with this many parameters, such as 70e9",
    )
    add(
        "--gpus",
        metavar="N",
        type=int,
        default=0,
        help="number of GPUs; each engine uses vllm_tensor_parallel_size of them [0]",
    )
    add("--gpu_memory", metavar="GB", type=float, default=80.0, help="memory per GPU, in GB [80]")
    add(
        "--prompts",
        metavar="N",
        type=int,
        help=f"prompts per member and step [batch_size, max_train_samples, or {_PROMPTS}]",
    )
    add(
        "--prompt_tokens",
        metavar="N",
        type=int,
        default=_PROMPT_TOKENS,
        help=f"tokens per prompt [{_PROMPT_TOKENS}]",
    )
    add(
        "--completion_tokens",
        metavar="N",
        type=float,
        help="mean tokens per completion [max_completion_length]",
    )
    add("--tokens_per_second", metavar="R", type=float, help="completion tokens/s of one engine")
    add("--measured", metavar="RUN", help="folder of a run whose measured speed to use")
    add(
        "--price",
        metavar="PRICE",
        type=float,
        help="price per GPU hour, or per hour of this machine",
    )
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    _check(options, config)
    from estune.monitor.console import quieten_libraries

    quieten_libraries()
    from estune.monitor.console import Screen
    from estune.run import estimate

    speed, completion_tokens = _speed_and_length(options, config)
    if options.parameters:
        shape = estimate.shape_like(options.parameters)
    else:
        shape = estimate.shape_of(str(config.model_name_or_path), config, config.model_revision)
    work = estimate.Workload(
        options.prompts or config.batch_size or config.max_train_samples or _PROMPTS,
        options.prompt_tokens,
        completion_tokens,
    )
    screen = Screen(config)
    screen.say(_heading(options, config, shape))
    if shape.parts and config.target_parameters is None:
        screen.say(_theta_of_experts(shape))
    if options.gpus:
        _show_memory_of_gpus(screen, options, config, shape, work)
    else:
        _show_memory_here(screen, config, shape, work)
    _show_time(screen, options, config, work, speed)
    return 0


def _check(options: argparse.Namespace, config: RunConfig) -> None:
    if not options.parameters and not config.model_name_or_path:
        raise ConfigError(
            "model_name_or_path: give a hub id, a folder or a config.json; or give --parameters"
        )
    for name in (
        "parameters",
        "gpu_memory",
        "prompts",
        "prompt_tokens",
        "completion_tokens",
        "tokens_per_second",
        "price",
    ):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}: must be a number above 0; it is {value}")
    if options.gpus < 0 or options.gpus % config.vllm_tensor_parallel_size:
        size = config.vllm_tensor_parallel_size
        raise ConfigError(
            f"gpus: must be a multiple of vllm_tensor_parallel_size, {size}; it is {options.gpus}"
        )
    if options.tokens_per_second and options.measured:
        raise ConfigError("measured: the run gives the speed, so leave tokens_per_second out")


def _speed_and_length(
    options: argparse.Namespace, config: RunConfig
) -> "tuple[Speed | None, float]":
    """Return the speed, None if unknown, and the mean tokens per completion."""
    from estune.run.estimate import Speed, measured_speed
    from estune.run.metrics_file import MetricsFile

    speed: Speed | None = None
    length = float(config.max_completion_length)
    if options.measured:
        records = MetricsFile(Path(options.measured) / "metrics.jsonl").read()
        if not records:
            raise ConfigError(
                f"measured: {options.measured} has no metrics.jsonl with a step; "
                "give a run's folder"
            )
        speed, length = measured_speed(records)
    elif options.tokens_per_second:
        speed = Speed(options.tokens_per_second)
    return speed, options.completion_tokens or length


def _heading(options: argparse.Namespace, config: RunConfig, shape: "Shape") -> str:
    """Return the line that names the model, the engine and the machine."""
    model = "a model of this size" if options.parameters else config.model_name_or_path
    tuned = "all tuned" if shape.tuned == shape.parameters else f"{shape.tuned:,} tuned"
    where = "this machine's processor"
    if options.gpus:
        where = f"{options.gpus} GPUs of {options.gpu_memory:g} GB"
    engine = f"engine {config.engine} in {_dtype(config, on_gpu=bool(options.gpus))}"
    return f"{model}: {shape.parameters:,} parameters, {tuned}; {engine}, on {where}"


def _theta_of_experts(shape: "Shape") -> str:
    """Return the memory that θ of a mixture of experts takes, and what would take less."""
    parts = ", ".join(f"{name} {_size(4 * count)}" for name, count in shape.parts.items())
    size = 4 * shape.tuned
    decimal = f" ({size / 1e9:,.0f} GB)" if size > 1e9 else ""
    return (
        f"θ in fp32 takes {_size(size)}{decimal}, for all experts, although a token uses few; "
        f"with target_parameters it takes less: {parts}"
    )


def _dtype(config: RunConfig, *, on_gpu: bool) -> str:
    from estune.engines.device import dtype_name, engine_dtype

    if on_gpu and config.dtype == "auto":
        return "bfloat16"
    return dtype_name(engine_dtype(config))


def _itemsize(config: RunConfig, *, on_gpu: bool) -> int:
    """Return the bytes per weight in the engine."""
    return 4 if _dtype(config, on_gpu=on_gpu) == "float32" else 2


def _show_memory_here(
    screen: "Screen", config: RunConfig, shape: "Shape", work: "Workload"
) -> None:
    from estune.common.resources import available_memory
    from estune.run import estimate

    itemsize = _itemsize(config, on_gpu=False)
    es = estimate.es_on_cpu(shape, config, work, itemsize)
    _table(screen, "memory", es, estimate.rl(shape, work, itemsize))
    screen.say(_verdict(es, available_memory(), "this machine"))


def _show_memory_of_gpus(
    screen: "Screen",
    options: argparse.Namespace,
    config: RunConfig,
    shape: "Shape",
    work: "Workload",
) -> None:
    from estune.run import estimate

    itemsize = _itemsize(config, on_gpu=True)
    rl = estimate.rl(shape, work, itemsize)
    device, host = estimate.es_on_gpu(shape, config, work, itemsize)
    memory = int(options.gpu_memory * 1e9)
    if options.gpus == 1 and config.workers == "local" and config.center_device != "cpu":
        screen.say(_move_theta(config, device, host, memory))
    _table(screen, "memory per GPU for ES, in all for RL", device, rl)
    screen.say(_verdict(device, memory, "a GPU"))
    gpus = math.ceil(sum(rl.values()) / memory)
    screen.say(f"RL takes at least {gpus} such GPUs, with weights and optimizer spread over them")
    parts = ", ".join(f"{what} {_size(size)}" for what, size in host.items())
    screen.say(f"in the machine's memory: {parts}")


def _move_theta(config: RunConfig, device: "Memory", host: "Memory", memory: int) -> str:
    """Move θ's entry from `host` to `device` if a run would keep θ on the GPU.

    Returns:
        Where θ is, and why.
    """
    from estune.run import placement

    engine = sum(device.values())
    if config.engine == "vllm":
        engine = placement.vllm_bytes(config, memory)
    chosen = placement.choose(config.center_device, host["θ, fp32"], engine, memory, "cuda")
    if chosen.device != "cpu":
        device["θ, fp32"] = host.pop("θ, fp32")
    return chosen.why


def _table(screen: "Screen", title: str, es: "Memory", rl: "Memory") -> None:
    names = dict.fromkeys([*es, *rl])
    rows = [[name, _size_in(es, name), _size_in(rl, name)] for name in names]
    total = ["in all", _size(sum(es.values())), _size(sum(rl.values()))]
    screen.table(title, ("", "ES", "RL, at least"), [*rows, total])


def _verdict(es: "Memory", available: int, owner: str) -> str:
    """Return whether the memory of ES fits into the `available` memory of `owner`."""
    needed = sum(es.values())
    sizes = f"it takes {_size(needed)}, and {owner} has {_size(available)}"
    if needed <= available:
        return f"ES fits: {sizes}"
    advice = "choose more GPUs, bfloat16, target_parameters or a smaller model"
    return f"ES does not fit: {sizes}; {advice}"


def _show_time(
    screen: "Screen",
    options: argparse.Namespace,
    config: RunConfig,
    work: "Workload",
    speed: "Speed | None",
) -> None:
    from estune.run import estimate

    tokens = estimate.tokens_per_step(config, work)
    prompts = f"{config.population_size} members × {work.prompts} prompts"
    each = f"{work.completion_tokens:.0f} per completion"
    screen.say(f"per step: {prompts}, {tokens:,.0f} tokens ({each})")
    if speed is None:
        screen.say(
            "for the time, add --tokens_per_second R or --measured RUN; for the price, --price"
        )
        return
    engines = config.num_workers or 1
    if options.gpus:
        engines = max(1, options.gpus // config.vllm_tensor_parallel_size)
    seconds = estimate.seconds_per_step(config, work, speed, engines)
    hours = seconds * config.max_steps / 3600
    cost = hours * max(1, options.gpus) * (options.price or 0)
    price = f", price {cost:,.2f}" if cost else ""
    trainer = f" and {speed.fixed:,.2f} s in the trainer" if speed.fixed else ""
    screen.say(
        f"{seconds:,.1f} s per step on {engines} engine{'s' * (engines > 1)} "
        f"({speed.tokens:,.0f} tokens/s each, plus {speed.overhead:.1%} for other work{trainer}); "
        f"{config.max_steps} steps: {hours:,.2f} hours{price}"
    )


def _size_in(memory: "Memory", name: str) -> str:
    return _size(memory[name]) if name in memory else "–"


def _size(size: int) -> str:
    from estune.common.resources import amount

    return amount(size)
