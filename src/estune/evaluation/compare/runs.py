"""The runs of a comparison: every method, each of its learning rates, each seed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estune.common.name_hints import nearest
from estune.config import RunConfig, build, depends_on_max_steps
from estune.errors import ConfigError
from estune.evaluation.compare.methods import METHODS, LearningRate, Method

SAMPLES = 8  # completions of a prompt that an RL method compares, TRL's default
_TOGETHER = 16  # sequences in one backward pass; the gradient is accumulated over a step
_FOR_A_COMPARISON = {
    "logging_steps": 1,
    "save_steps": 2**31,
    "disable_tqdm": True,
    "num_completions_to_print": 0,
    "resume_from_checkpoint": False,
    "report_to": None,
    "log_completions": False,
    "push_to_hub": False,
    "run_name": None,
    "hub_model_id": None,
    "eval_strategy": "no",
    "eval_steps": None,
    "eval_on_start": False,
    "metric_for_best_model": None,
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
}
_OWN = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "seed",
    "output_dir",
)


@dataclass(frozen=True)
class Budget:
    """Training tokens of a run, tokens between evaluations, and most prompts of an evaluation set.

    Raises:
        ConfigError: one is below 1, or evaluations are further apart than the whole.
    """

    tokens: int
    eval_tokens: int
    eval_prompts: int

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
    """One method with one learning rate and one seed: everything that its process needs."""

    method: str
    learning_rate: LearningRate
    seed: int
    tokens: int
    eval_tokens: int
    eval_prompts: int
    settings: dict[str, Any]  # of RunConfig, without defaults
    rl: dict[str, Any]  # of TRL's GRPOConfig, for an RL method
    evaluates: bool  # whether held-out prompts are evaluated too

    @property
    def point(self) -> str:
        """Method and learning rate for display."""
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
        """The run's settings, checked."""
        return build(RunConfig, self.settings)


def check(config: RunConfig) -> None:
    """Raise ConfigError for settings that cannot be the same for all methods."""
    if config.datasets:
        raise ConfigError("datasets: TRL draws no mixtures; compare on one task or dataset_name")
    if config.workers == "accelerate":
        raise ConfigError(
            "workers: accelerate is launched from outside, but each run has its own process; "
            "use local"
        )
    if schedule := depends_on_max_steps(config):
        raise ConfigError(
            f"{schedule} spans max_steps, but here a run ends with its tokens; leave it constant"
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
    """Return the runs in order: seed by seed, so that every method has a result early.

    Args:
        rows: how many training prompts there are.
        rl: further settings of GRPOConfig, for all RL methods.

    Raises:
        ConfigError: the config refuses a method's settings, or seeds or `rl` are wrong.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: must be at least 1; it is {seeds}")
    if wrong := next((name for name in rl if name in _OWN), None):
        raise ConfigError(f"rl_kwargs: {wrong} is set by the comparison; leave it out")
    samples = rl.get("num_generations", SAMPLES)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 2:
        raise ConfigError(
            f"rl_kwargs: num_generations must be a whole number from 2 on; it is {samples!r}"
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
    es = method.kind == "es"
    settings = _changed(config) | _FOR_A_COMPARISON | {"seed": seed}
    if es:
        settings |= dict(method.settings) | {"learning_rate": method.alpha(rate, config.sigma)}
    population = settings.get("population_size", config.population_size)
    samples = population if es else rl.get("num_generations", SAMPLES)
    steps = most_steps(budget.tokens, batch, samples)
    built = _built(settings | {"max_steps": steps}, method)
    evaluates = config.eval_strategy != "no" or config.eval_on_start or config.eval_dataset_name
    return ComparisonRun(
        method.name,
        rate,
        seed,
        **vars(budget),
        settings=_changed(built),
        rl={} if es else _trl(built, method, rate, batch, rl),
        evaluates=bool(evaluates),
    )


def _built(settings: dict[str, Any], method: Method) -> RunConfig:
    try:
        return build(RunConfig, settings)
    except ConfigError as error:
        raise ConfigError(
            f"methods: {method.name} does not fit this config; "
            f"change it or leave {method.name} out ({error})"
        ) from None


def most_steps(tokens: int, batch: int, samples: int) -> int:
    """Return the most steps of a run: empty completions would never use the tokens up."""
    return max(1, -(-tokens // (batch * samples)))


def _trl(
    config: RunConfig,
    method: Method,
    rate: LearningRate,
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
        "seed": config.seed,
        "max_steps": config.max_steps,
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


def seeds_of(runs: Sequence[ComparisonRun]) -> list[int]:
    return list(dict.fromkeys(run.seed for run in runs))


def load(values: Mapping[str, Any]) -> ComparisonRun:
    """Return a run from its JSON. Raises ConfigError: another version wrote it."""
    names = [field.name for field in dataclasses.fields(ComparisonRun)]
    if set(values) != set(names):
        odd = next(iter(set(values) ^ set(names)))
        raise ConfigError(f"a run's {odd!r} is not what this version writes{nearest(odd, names)}")
    return ComparisonRun(**values)


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    return {name: value for name, value in vars(config).items() if value != defaults[name]}
