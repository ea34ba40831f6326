"""Estimate a run before it starts: memory by part and, given a speed, its hours and its price.

  estune plan --config run.yaml
  estune plan --config run.yaml --measured runs/quickstart
  estune plan --model_name_or_path Qwen/Qwen2.5-7B-Instruct --gpus 4 --tokens_per_second 9000
  estune plan --parameters 70e9 --gpus 16 --vllm_tensor_parallel_size 4

RL's memory is shown for comparison. Only the model's config is read. Without --gpus the estimate is
for this machine's processor. --measured takes the speed and the length of completions from a run's
metrics. Any setting of `estune train` may be given too.
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
_PROMPTS, _PROMPT_TOKENS = 200, 128


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
        help="GPUs of the run, each engine on vllm_tensor_parallel_size of them [0]",
    )
    add("--gpu_memory", metavar="GB", type=float, default=80.0, help="memory of each, in GB [80]")
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
        help=f"tokens of each prompt [{_PROMPT_TOKENS}]",
    )
    add(
        "--completion_tokens",
        metavar="N",
        type=float,
        help="mean tokens of a completion [max_completion_length]",
    )
    add("--tokens_per_second", metavar="R", type=float, help="speed of one engine")
    add("--measured", metavar="RUN", help="folder of a run whose speed to use")
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

    speed, completion = _speed(options, config)
    if options.parameters:
        shape = estimate.shape_like(options.parameters)
    else:
        shape = estimate.shape_of(str(config.model_name_or_path), config, config.model_revision)
    work = estimate.Workload(
        options.prompts or config.batch_size or config.max_train_samples or _PROMPTS,
        options.prompt_tokens,
        completion,
    )
    screen = Screen(config)
    screen.say(_about(options, config, shape))
    if shape.parts and config.target_parameters is None:
        screen.say(_about_theta(shape))
    _show_memory(screen, options, config, shape, work)
    _show_time(screen, options, config, work, speed)
    return 0


def _check(options: argparse.Namespace, config: RunConfig) -> None:
    if not options.parameters and not config.model_name_or_path:
        raise ConfigError(
            "model_name_or_path: give a hub id, a folder or a config.json, or --parameters 7e9"
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
        raise ConfigError("measured: it already gives the speed, so leave tokens_per_second out")


def _speed(options: argparse.Namespace, config: RunConfig) -> "tuple[Speed | None, float]":
    """Return the speed, None if unknown, and the mean length of a completion."""
    from estune.run.estimate import Speed, measured_speed
    from estune.run.metrics_file import MetricsFile

    given = options.completion_tokens
    if options.measured:
        records = MetricsFile(Path(options.measured) / "metrics.jsonl").read()
        if not records:
            raise ConfigError(
                f"measured: {options.measured} has no metrics.jsonl with a step; "
                "give a run's folder"
            )
        speed, seen = measured_speed(records)
        return speed, given or seen
    speed_given = Speed(options.tokens_per_second) if options.tokens_per_second else None
    return speed_given, given or float(config.max_completion_length)


def _about(options: argparse.Namespace, config: RunConfig, shape: "Shape") -> str:
    name = "a model of this size" if options.parameters else config.model_name_or_path
    part = "all tuned" if shape.tuned == shape.parameters else f"{shape.tuned:,} tuned"
    where = (
        f"{options.gpus} GPUs of {options.gpu_memory:g} GB"
        if options.gpus
        else "this machine's processor"
    )
    engine = f"engine {config.engine} in {_dtype(options, config)}"
    return f"{name}: {shape.parameters:,} parameters, {part}; {engine}, on {where}"


def _about_theta(shape: "Shape") -> str:
    """Return the memory that θ of a mixture of experts takes, and what would take less."""
    parts = ", ".join(f"{name} {_size(4 * count)}" for name, count in shape.parts.items())
    size = 4 * shape.tuned
    decimal = f" ({size / 1e9:,.0f} GB)" if size > 1e9 else ""
    return (
        f"θ in fp32 takes {_size(size)}{decimal}, for all experts, although a token uses few; "
        f"with target_parameters it takes less: {parts}"
    )


def _dtype(options: argparse.Namespace, config: RunConfig) -> str:
    from estune.engines.device import dtype_name, engine_dtype

    return (
        "bfloat16" if options.gpus and config.dtype == "auto" else dtype_name(engine_dtype(config))
    )


def _show_memory(
    screen: "Screen",
    options: argparse.Namespace,
    config: RunConfig,
    shape: "Shape",
    work: "Workload",
) -> None:
    from estune.common.resources import available_memory
    from estune.run import estimate

    itemsize = 4 if _dtype(options, config) == "float32" else 2
    rival = estimate.rl(shape, work, itemsize)
    if not options.gpus:
        here = estimate.es_here(shape, config, work, itemsize)
        _table(screen, "memory", here, rival)
        screen.say(_verdict("ES", sum(here.values()), available_memory(), "this machine has"))
        return
    device, host = estimate.es_on_gpu(shape, config, work, itemsize)
    memory = options.gpu_memory * 1e9
    if options.gpus == 1 and config.workers == "local" and config.center_device != "cpu":
        screen.say(_place_theta(config, device, host, int(memory)))
    _table(screen, "memory of each GPU for ES, in all for RL", device, rival)
    screen.say(_verdict("ES", sum(device.values()), memory, "a GPU has"))
    gpus = math.ceil(sum(rival.values()) / memory)
    screen.say(f"RL: takes at least {gpus} such GPUs, weights and optimizer sharded over them")
    parts = ", ".join(f"{what} {_size(size)}" for what, size in host.items())
    screen.say(f"in the machine's memory: {parts}")


def _place_theta(config: RunConfig, device: "Memory", host: "Memory", memory: int) -> str:
    """Move θ into `device` if a run would keep it on the GPU; return the reason."""
    from estune.run import placement

    engine = (
        placement.vllm_takes(config, memory) if config.engine == "vllm" else sum(device.values())
    )
    place = placement.choose(config.center_device, host["θ, fp32"], engine, memory, "cuda")
    if place.device != "cpu":
        device["θ, fp32"] = host.pop("θ, fp32")
    return place.why


def _table(screen: "Screen", title: str, es: "Memory", rl: "Memory") -> None:
    rows = [
        [name, _size(es[name]) if name in es else "–", _size(rl[name]) if name in rl else "–"]
        for name in dict.fromkeys([*es, *rl])
    ]
    screen.table(
        title,
        ("", "ES", "RL, at least"),
        [*rows, ["in all", _size(sum(es.values())), _size(sum(rl.values()))]],
    )


def _verdict(who: str, need: int, there: float, whose: str) -> str:
    fits = (
        "fits"
        if need <= there
        else "does not fit: choose more GPUs, bfloat16, target_parameters or a smaller model"
    )
    return f"{who}: takes {_size(need)}, {whose} {_size(int(there))}: {fits}"


def _show_time(
    screen: "Screen",
    options: argparse.Namespace,
    config: RunConfig,
    work: "Workload",
    speed: "Speed | None",
) -> None:
    from estune.run import estimate

    tokens = estimate.tokens_a_step(config, work)
    each = f"{tokens:,.0f} tokens at {work.completion_tokens:.0f} each"
    screen.say(f"per step: {config.population_size} members × {work.prompts} prompts, {each}")
    if speed is None:
        screen.say("for hours and price add --tokens_per_second R or --measured RUN, and --price")
        return
    engines = config.num_workers or 1
    if options.gpus:
        engines = max(1, options.gpus // config.vllm_tensor_parallel_size)
    seconds = estimate.seconds_a_step(config, work, speed, engines)
    hours = seconds * config.max_steps / 3600
    cost = hours * max(1, options.gpus) * (options.price or 0)
    price = f", {cost:,.2f} in all" if cost else ""
    own = f", {speed.fixed:,.2f} s for the trainer's own work" if speed.fixed else ""
    screen.say(
        f"{seconds:,.1f} s per step on {engines} engine{'s' * (engines > 1)} "
        f"({speed.tokens:,.0f} tokens/s each, {speed.overhead:.1%} beyond generating{own}); "
        f"{config.max_steps} steps: {hours:,.2f} hours{price}"
    )


def _size(size: int) -> str:
    from estune.common.resources import amount

    return amount(size)
