"""The runs of a comparison: one for each method, learning rate and seed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estune.config import RunConfig, build, depends_on_max_steps
from estune.errors import ConfigError
from estune.evaluation.compare.methods import METHODS, LearningRate, Method

SAMPLES = 8  # completions per prompt in RL, TRL's default
_TOGETHER = 16  # most sequences in one backward pass; gradients are accumulated over a step
_NO_FILES = {
    "report_to": None,
    "log_completions": False,
    "push_to_hub": False,
    "run_name": None,
    "hub_model_id": None,
}
_NO_EVALUATION = {
    "eval_strategy": "no",
    "eval_steps": None,
    "eval_on_start": False,
    "metric_for_best_model": None,
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
}
_SET_BY_COMPARISON = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "seed",
    "output_dir",
)


@dataclass(frozen=True)
class Budget:
    """How long each run trains, and how often and on how much it is evaluated.

    Raises:
        ConfigError: a number is below 1, or `eval_tokens` is above `tokens`.
    """

    tokens: int  # in the completions of training
    eval_tokens: int  # from one evaluation to the next
    eval_prompts: int  # at most, of the training prompts and of the held-out prompts

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name}: must be at least 1; it is {value}")
        if self.eval_tokens > self.tokens:
            raise ConfigError(
                f"eval_tokens: must be at most tokens, {self.tokens}; it is {self.eval_tokens}"
            )


@dataclass(frozen=True)
class ComparisonRun:
    """A run of one method with one learning rate and one seed: all that its process must know."""

    method: str
    learning_rate: LearningRate
    seed: int
    tokens: int
    eval_tokens: int
    eval_prompts: int
    settings: dict[str, Any]  # of RunConfig, those that differ from their defaults
    rl: dict[str, Any]  # of TRL's GRPOConfig; empty for ES
    evaluates: bool  # whether held-out prompts are evaluated too, not only training prompts

    @property
    def point(self) -> str:
        """The method and the learning rate, as printed."""
        rate = "" if self.learning_rate in (None, "auto") else f" {self.learning_rate:g}"
        return f"{self.method}{rate}"

    @property
    def label(self) -> str:
        """The prefix of the run's printed lines."""
        return f"{self.point} seed {self.seed}"

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.label.replace(" ", "-")

    def config(self) -> RunConfig:
        """The run's settings as a config, which checks them."""
        return build(RunConfig, self.settings)


def check(config: RunConfig) -> None:
    """Raise ConfigError for settings that cannot be the same for all methods."""
    if config.datasets:
        raise ConfigError("datasets: TRL draws no mixtures; compare on one task or dataset_name")
    if config.workers == "accelerate":
        raise ConfigError(
            "workers: accelerate needs a launcher, but this command starts each run's process "
            "itself; use local"
        )
    if schedule := depends_on_max_steps(config):
        raise ConfigError(
            f"{schedule} depends on max_steps, but here a run ends by its tokens; leave it constant"
        )


def runs(
    config: RunConfig,
    methods: Sequence[Method],
    rates: Mapping[str, Sequence[LearningRate]],
    seeds: int,
    budget: Budget,
    rows: int,
    rl: Mapping[str, Any],
) -> list[ComparisonRun]:
    """Return the runs in the order of execution: seed by seed, so each method has a result early.

    Args:
        rates: method → learning rates to try.
        seeds: how many seeds.
        rows: how many training prompts there are.
        rl: the user's settings of GRPOConfig, for all RL methods.

    Raises:
        ConfigError: a method's settings do not fit the config, or `seeds` or `rl` is wrong.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: must be at least 1; it is {seeds}")
    if wrong := next((name for name in rl if name in _SET_BY_COMPARISON), None):
        raise ConfigError(f"rl_kwargs: {wrong} is set by the comparison; leave it out")
    samples = rl.get("num_generations", SAMPLES)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ConfigError(
            f"rl_kwargs: num_generations must be a whole number of at least 2; it is {samples!r}"
        )
    check(config)
    batch = min(config.batch_size or rows, rows)
    return [
        _run(config, method, rate, config.seed + offset, budget, batch, rl)
        for offset in range(seeds)
        for method in methods
        for rate in rates[method.name]
    ]


def _run(
    config: RunConfig,
    method: Method,
    rate: LearningRate,
    seed: int,
    budget: Budget,
    batch: int,
    rl: Mapping[str, Any],
) -> ComparisonRun:
    own = (
        dict(method.settings) | {"learning_rate": method.alpha(rate, config.sigma)}
        if method.kind == "es"
        else {}
    )
    settings = (
        _changed(config)
        | _NO_EVALUATION
        | _NO_FILES
        | {"seed": seed, "logging_steps": 1, "save_steps": 2**31}
        | own
    )
    population = settings.get("population_size", config.population_size)
    samples = population if method.kind == "es" else rl.get("num_generations", SAMPLES)
    steps = most_steps(budget.tokens, batch, samples)
    settings |= {
        "max_steps": steps,
        "disable_tqdm": True,
        "num_completions_to_print": 0,
        "resume_from_checkpoint": False,
    }
    misfit = (
        f"methods: {method.name} does not fit this config; change it or leave {method.name} out"
    )
    settings = _changed(build(RunConfig, settings, f"{misfit}: "))
    trl = _trl(config, method, rate, seed, steps, batch, rl) if method.kind == "rl" else {}
    evaluates = (
        config.eval_strategy != "no" or config.eval_on_start or config.eval_dataset_name is not None
    )
    return ComparisonRun(
        method.name, rate, seed, **vars(budget), settings=settings, rl=trl, evaluates=evaluates
    )


def most_steps(tokens: int, batch: int, samples: int) -> int:
    """Return the steps in which completions of one token use up `tokens`.

    Without this limit, a model that only gives empty completions would train for ever.
    """
    return max(1, -(-tokens // (batch * samples)))


def _trl(
    config: RunConfig,
    method: Method,
    rate: LearningRate,
    seed: int,
    steps: int,
    batch: int,
    rl: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings of GRPOConfig; gradients are accumulated over the prompts of a step."""
    samples = rl.get("num_generations", SAMPLES)
    together = max(
        size
        for size in range(1, min(_TOGETHER, batch * samples) + 1)
        if batch * samples % size == 0
    )
    return {
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "seed": seed,
        "max_steps": steps,
        "num_generations": samples,
        "per_device_train_batch_size": together,
        "gradient_accumulation_steps": batch * samples // together,
        "max_completion_length": config.max_completion_length,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "chat_template_kwargs": config.chat_template_kwargs or {},
        **method.settings,
        **rl,
    }


def is_es(run: ComparisonRun) -> bool:
    return METHODS[run.method].kind == "es"


def load(values: Mapping[str, Any]) -> ComparisonRun:
    """Return the run that run.json holds as `values`.

    Raises:
        ConfigError: another version of estune wrote it.
    """
    names = {field.name for field in dataclasses.fields(ComparisonRun)}
    if odd := set(values) ^ names:
        raise ConfigError(
            f"run.json: another version of estune wrote it (field {min(odd)!r}); "
            "choose another output folder"
        )
    return ComparisonRun(**values)


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    return {name: value for name, value in vars(config).items() if value != defaults[name]}
