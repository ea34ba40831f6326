"""Every setting of a run, checked before anything is loaded; importing this pulls in no torch.

Names are TRL's where the concept is shared (`max_completion_length`, `save_steps`) and the paper's where it is not
(`sigma`, `population_size`). The same checks serve Python, YAML and the command line.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from estune.common import trl_names
from estune.errors import ConfigError


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with the sentence that `--help` shows, and limits: above, least, below, most (numbers)."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class ESConfig:
    """Settings of `ESTrainer`. Defaults are the paper's (https://arxiv.org/abs/2509.24372) where it has one.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting.
    """

    # evolution strategy
    population_size: int = _setting(30, "N: perturbed models evaluated a step", least=2)
    sigma: float = _setting(
        1e-3, "σ: standard deviation of the noise added to each weight", above=0
    )
    learning_rate: float | Literal["auto"] | None = _setting(
        None,
        "α: step size, with 1/σ folded in; default σ/2, as in the paper; auto: found step by step, and σ from the given one on",
        above=0,
    )
    max_steps: int = _setting(500, "updates to make in all", least=1)
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = _setting(
        "constant", "how α changes over max_steps: linear and cosine end near 0"
    )
    warmup_steps: int = _setting(0, "steps over which α rises to its full size", least=0)
    sigma_end: float | None = _setting(None, "σ of the last step; default σ throughout", above=0)
    sigma_scheduler_type: Literal["constant", "linear", "cosine"] = _setting(
        "constant", "how σ goes to sigma_end over max_steps"
    )
    weight_decay: float = _setting(
        0.0,
        "λ, against forgetting: before each update θ draws nearer to the base model by α·λ of its distance",
        least=0,
    )
    noise: Literal["iid", "correlated"] = _setting(
        "iid",
        "iid: every parameter has its own noise; correlated: all share one stream, as in the paper's scripts",
    )
    antithetic: bool = _setting(False, "evaluate each seed twice, at θ+σε and θ−σε")
    fitness: Literal["mean", "pass_at_k"] = _setting(
        "mean", "of a member: its mean reward; pass_at_k: what it adds to the population's pass@k"
    )
    pass_k: int | None = _setting(None, "k of pass_at_k, below population_size", least=1)
    pass_reward: float = _setting(
        1.0, "a completion passes, for pass_at_k, with at least this reward"
    )
    prompt_shaping: Literal["center", "standardize"] | None = _setting(
        None,
        "center: a reward less the population's mean on its prompt; standardize: over its standard deviation too",
    )
    reward_shaping: Literal["z_score", "centered_rank", "none"] = _setting(
        "z_score",
        "how fitness becomes update weights; none: as it is, for antithetic pairs alone, with α = MeZO's learning rate / σ",
    )
    target_parameters: list[str] | None = _setting(
        None, "regular expressions; only parameters whose name matches one are tuned"
    )
    seed: int = _setting(42, "of the noise and of the order of the prompts", least=0, below=2**63)

    # prompts and generation
    batch_size: int | None = _setting(
        None, "prompts a member answers a step, the same for all members; default all", least=1
    )
    max_completion_length: int = _setting(256, "new tokens at most", least=1)
    stop: list[str] | None = _setting(
        None, "strings that end a completion; they are not part of it"
    )
    chat_template_kwargs: dict[str, Any] | None = _setting(
        None, "passed to the chat template of conversational prompts"
    )

    # engine and workers
    engine: Literal["transformers", "vllm", "fake"] = _setting(
        "transformers", "what generates; fake serves tests"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _setting(
        "auto",
        "of the engine's weights; auto is bfloat16 where the device computes in it, else float32",
    )
    device: str = _setting("auto", "of the engine: auto, cpu, cuda, cuda:1, mps, xpu")
    center_device: Literal["auto", "cuda", "cpu"] = _setting(
        "auto",
        "where θ lives: auto: on the engine's GPU where it fits beside the engine, else in host memory",
    )
    generation_batch_size: int = _setting(
        64, "sequences generated at a time; halved when memory runs out", least=1
    )
    model_init_kwargs: dict[str, Any] | None = _setting(
        None, "passed to AutoModelForCausalLM.from_pretrained"
    )
    trust_remote_code: bool = _setting(False, "run model code that comes with a checkpoint")
    vllm_gpu_memory_utilization: float | None = _setting(
        None,
        "part of a GPU's memory that vLLM takes; default vLLM's own, or a 4 GiB cache on a CPU",
        above=0,
        most=1,
    )
    vllm_tensor_parallel_size: int = _setting(1, "GPUs that share one vLLM engine", least=1)
    vllm_max_model_length: int | None = _setting(
        None, "tokens of a prompt and its completion; default the model's", least=1
    )
    vllm_enforce_eager: bool = _setting(
        False, "no compilation and no CUDA graphs: starts sooner, generates slower"
    )
    vllm_model_impl: Literal["auto", "vllm", "transformers"] = _setting(
        "auto", "whose implementation of the model vLLM runs"
    )
    engine_kwargs: dict[str, Any] | None = _setting(
        None, "passed to vllm.LLM as it is, such as {max_num_seqs: 512}"
    )
    workers: Literal["local", "ray", "accelerate"] = _setting(
        "local",
        "who evaluates members: one engine in this process; ray: one a Ray actor; accelerate: one a launched process",
    )
    num_workers: int | None = _setting(
        None,
        "engines under ray; default as many as there are GPUs for, or one a node without",
        least=1,
    )
    ray_address: str | None = _setting(
        None,
        "of a running Ray cluster, auto for this machine's; default one started for the run alone",
    )
    worker_timeout: float = _setting(
        3600,
        "seconds that a Ray worker may take over what it was given, before it is replaced",
        above=0,
    )

    # rewards
    reward_weights: list[float] | None = _setting(
        None, "one weight a reward function; default 1 each"
    )
    reward_timeout: float = _setting(
        60, "seconds that a call of a reward function may take before it is killed", above=0
    )
    reward_workers: int | None = _setting(
        None,
        "processes that call reward functions, at most; default one a core, 4 to 16; 0 calls them in the trainer's",
        least=0,
    )
    reward_memory: float | None = _setting(
        None, "GiB that one of them may take; default a quarter of the machine's", above=0
    )
    reward_concurrency: int = _setting(64, "calls of an async reward function at a time", least=1)
    on_reward_error: Literal["lowest", "zero", "drop", "raise"] = _setting(
        "lowest",
        "what a completion counts at which a reward function fails: lowest, that function's lowest reward of the step (and in the "
        "run's first batch the failure is raised); zero; drop, it does not count; raise, the run ends",
    )

    # evaluation
    eval_strategy: Literal["no", "steps"] = _setting(
        "no", "steps: evaluate every eval_steps and after the last step"
    )
    eval_steps: int | None = _setting(
        None, "steps between evaluations; default after the last step alone", least=1
    )
    eval_on_start: bool = _setting(False, "evaluate the base model first")
    metric_for_best_model: str | None = _setting(
        None, "evaluation metric that picks the best checkpoint, e.g. reward"
    )
    greater_is_better: bool = _setting(True, "whether a higher metric_for_best_model is better")
    load_best_model_at_end: bool = _setting(False, "end with the parameters of the best checkpoint")
    early_stopping_patience: int | None = _setting(
        None,
        "stop after so many evaluations in which metric_for_best_model did not improve; default never",
        least=1,
    )
    early_stopping_threshold: float = _setting(
        0.0, "what an evaluation must gain to count as an improvement", least=0
    )

    # the run's folder
    output_dir: str = _setting("estune-output", "folder of the run: journal, metrics, checkpoints")
    save_steps: int = _setting(
        100, "steps between checkpoints; one is always written after the last step", least=1
    )
    save_total_limit: int | None = _setting(
        None, "checkpoints to keep, the best one beside them; default all", least=1
    )
    resume_from_checkpoint: bool = _setting(
        False, "go on with the run in output_dir, from its last whole step"
    )

    # logging
    logging_steps: int = _setting(
        1, "steps between lines on a screen without a progress bar, and to trackers", least=1
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "the least severe lines about the run that standard error shows"
    )
    report_to: list[str] | None = _setting(
        None, "trackers: tensorboard, wandb, trackio, mlflow, …, through accelerate"
    )
    run_name: str | None = _setting(
        None, "name of the run for trackers; default the output folder's name"
    )
    log_completions: bool = _setting(
        False, "print the best member's completions every logging_steps"
    )
    num_completions_to_print: int = _setting(8, "rows of the table of sample completions", least=0)
    profile: bool = _setting(
        False,
        "write profile-K.json from step K on, which ui.perfetto.dev and chrome://tracing show",
    )
    disable_tqdm: bool = _setting(
        False, "no progress bar: a line of text every logging_steps instead"
    )
    push_to_hub: bool = _setting(False, "upload the last checkpoint when training ends")
    hub_model_id: str | None = _setting(
        None, "repository to push to; default the output folder's name"
    )

    def __post_init__(self) -> None:
        for name, value in checked(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        if self.antithetic and self.population_size % 2:
            raise ConfigError(
                f"population_size: antithetic members come in pairs, so {self.population_size} must be even"
            )
        for name in ("model_init_kwargs", "engine_kwargs"):
            if "trust_remote_code" in (getattr(self, name) or {}):
                raise ConfigError(
                    f"{name}: trust_remote_code is a setting of its own; give that instead"
                )
        _check_schedules(self)
        _check_fitness(self)
        if "" in (self.stop or []):
            raise ConfigError(
                "stop: an empty string would end every completion before its first token; leave it out, or give some text"
            )
        if self.workers != "ray" and self.num_workers not in (None, 1):
            more = (
                "choose workers: ray"
                if self.workers == "local"
                else "accelerate launch --num_processes says how many"
            )
            raise ConfigError(
                f"num_workers: workers: {self.workers} has one engine in each process, not {self.num_workers}; {more}"
            )
        if self.engine != "vllm" and self.vllm_tensor_parallel_size != 1:
            raise ConfigError(f"vllm_tensor_parallel_size: needs engine: vllm; it is {self.engine}")
        if self.load_best_model_at_end and not self.metric_for_best_model:
            raise ConfigError("load_best_model_at_end: set metric_for_best_model too, e.g. reward")
        if self.metric_for_best_model and self.eval_strategy == "no":
            raise ConfigError(
                "metric_for_best_model: needs evaluations; set eval_strategy to steps"
            )
        if self.early_stopping_patience and not self.metric_for_best_model:
            raise ConfigError("early_stopping_patience: set metric_for_best_model too, e.g. reward")

    @property
    def alpha(self) -> float:
        """α, the learning rate at its full size: σ/2 unless set to a number."""
        return (
            self.learning_rate if isinstance(self.learning_rate, (int, float)) else self.sigma / 2
        )


def _check_schedules(config: ESConfig) -> None:
    """Schedules and the decay that goes with α; raises ConfigError."""
    if config.learning_rate == "auto":
        _check_auto(config)
    if config.warmup_steps and config.lr_scheduler_type == "constant":
        raise ConfigError(
            "warmup_steps: lr_scheduler_type: constant has none; choose constant_with_warmup, linear or cosine"
        )
    if config.warmup_steps >= config.max_steps:
        raise ConfigError(
            f"warmup_steps: must be below max_steps, {config.max_steps}; it is {config.warmup_steps}"
        )
    if (config.sigma_end is None) != (config.sigma_scheduler_type == "constant"):
        raise ConfigError(
            "sigma_end: goes with sigma_scheduler_type: linear or cosine; set both, or neither"
        )
    if config.alpha * config.weight_decay > 1:
        raise ConfigError(
            f"weight_decay: α·λ must be at most 1; it is {config.alpha:g} · {config.weight_decay:g}"
        )


def _check_auto(config: ESConfig) -> None:
    """What cannot go with sizes that are found on the way; raises ConfigError."""
    given = {
        "lr_scheduler_type": config.lr_scheduler_type != "constant",
        "sigma_end": config.sigma_end is not None,
        "weight_decay": config.weight_decay > 0,
        "fitness": config.fitness != "mean",
        "reward_shaping": config.reward_shaping == "none",
    }
    for name in filter(given.get, given):
        raise ConfigError(
            f"{name}: learning_rate: auto tries sizes by their mean reward and follows no schedule; give a number instead"
        )


def _check_fitness(config: ESConfig) -> None:
    """Settings of the fitness that need or exclude one another; raises ConfigError."""
    if (config.fitness == "pass_at_k") != (config.pass_k is not None):
        raise ConfigError("pass_k: goes with fitness: pass_at_k; set both, or neither")
    if config.pass_k is not None and config.pass_k >= config.population_size:
        raise ConfigError(
            f"pass_k: must be below population_size, {config.population_size}; it is {config.pass_k}"
        )
    if config.reward_shaping == "none" and not config.antithetic:
        raise ConfigError(
            "reward_shaping: none has no baseline but the other of a pair; set antithetic to true, or choose z_score"
        )
    if config.fitness != "mean" and config.prompt_shaping:
        raise ConfigError(
            "prompt_shaping: needs fitness: mean; pass_at_k compares members prompt by prompt already"
        )


@dataclass(frozen=True)
class RunConfig(ESConfig):
    """What `estune train` takes: an `ESConfig` and where model, data and rewards come from, under TRL's names."""

    model_name_or_path: str | None = _setting(None, "hub id, local folder or .gguf file")
    model_revision: str | None = _setting(None, "branch, tag or commit of a hub model")
    task: str | None = _setting(None, "data and reward together by name; `estune tasks` lists them")
    dataset_name: str | None = _setting(
        None, "hub id, local folder, or a JSON, JSONL, Parquet or CSV file"
    )
    dataset_config: str | None = _setting(None, "configuration of a hub dataset")
    datasets: list[dict[str, Any]] | None = _setting(
        None,
        "a mixture in place of task and dataset_name: [{task: countdown, weight: 2}, {path: data.jsonl, reward_funcs: [mine.f]}]",
    )
    dataset_train_split: str = _setting("train", "split to train on")
    dataset_test_split: str = _setting("test", "split to evaluate on, where there is one")
    eval_dataset_name: str | None = _setting(
        None, "held-out data in a place of its own, as dataset_name"
    )
    max_train_samples: int | None = _setting(
        None, "use only the first rows of the training data", least=1
    )
    max_eval_samples: int | None = _setting(
        None, "use only the first rows of the held-out data", least=1
    )
    reward_funcs: list[str] | None = _setting(
        None,
        "built-in names, dotted paths such as my_rewards.short, or reward models: hub id or folder",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.datasets is not None and (self.task or self.dataset_name):
            raise ConfigError(
                "datasets: takes the place of task and dataset_name; give one of them"
            )


# What `resume_from_checkpoint` may change: nothing here alters what a step computes, up to the engine's own rounding and
# to rewards that failed.
# max_steps may not where a schedule spans it, which `resume.py` sees to.
# fmt: off
MAY_CHANGE_ON_RESUME = frozenset((
    "max_steps", "engine", "dtype", "device", "center_device", "generation_batch_size", "model_init_kwargs", "trust_remote_code",
    "on_reward_error", "reward_timeout", "reward_workers", "reward_memory", "reward_concurrency",
    "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_max_model_length", "vllm_enforce_eager", "vllm_model_impl",
    "engine_kwargs", "workers", "num_workers", "ray_address", "worker_timeout", "eval_strategy", "eval_steps", "eval_on_start",
    "metric_for_best_model", "greater_is_better", "load_best_model_at_end",
    "early_stopping_patience", "early_stopping_threshold", "output_dir", "save_steps", "save_total_limit",
    "resume_from_checkpoint", "logging_steps", "log_level", "report_to", "run_name", "log_completions", "num_completions_to_print",
    "disable_tqdm",
    "profile", "push_to_hub", "hub_model_id", "model_name_or_path", "eval_dataset_name", "dataset_test_split", "max_eval_samples",
))
# fmt: on

C = TypeVar("C", bound=ESConfig)


def build(kind: type[C], values: dict[str, Any], where: str = "") -> C:
    """A config of `kind` from a mapping; an unknown key is an error that names the nearest right one."""
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}unknown setting {key!r}{nearest(str(key), names)}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def nearest(word: str, words: list[str]) -> str:
    """What to say of an unknown word: what it is called here, '; did you mean …?' when some known word is near, else where to look."""
    if said := trl_names.known(word):
        return f"; {said}"
    close = difflib.get_close_matches(word.lstrip("-"), words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "; see --help for the settings there are"


def checked(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` converted to the declared types of the fields of `kind`, limits checked."""
    return {
        field.name: _checked(kind, field, values[field.name]) for field in dataclasses.fields(kind)
    }


def _checked(kind: type, field: dataclasses.Field[Any], value: Any) -> Any:
    if value is False and "no" in get_args(field.type):
        value = "no"  # what YAML makes of a bare no
    if isinstance(value, bool) and _is_number(field):
        raise ConfigError(f"{field.name}: must be a number; it is {value}")
    if isinstance(value, (str, int, float)) and "list" in str(field.type):
        value = [value]  # one is as good as a list of one
    if field.name == "resume_from_checkpoint" and _is_path(value):
        raise ConfigError(
            f"resume_from_checkpoint: is true or false, not a path: a run goes on from the journal in its output_dir; it is {value!r}"
        )
    try:
        value = _adapters(kind)[field.name].validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{field.name}: must be {reason}; it is {value!r}") from None
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _check_limits(field, number)
    return value


def _is_path(value: Any) -> bool:
    return not isinstance(value, bool) and any(
        sign in str(value) for sign in ("/", "\\", "checkpoint-")
    )


def _is_number(field: dataclasses.Field[Any]) -> bool:
    return bool({field.type, *get_args(field.type)} & {int, float, list[float]})


def _check_limits(field: dataclasses.Field[Any], value: float) -> None:
    limits = field.metadata
    if isinstance(value, float) and not math.isfinite(
        value
    ):  # an int may be too large for isfinite
        raise ConfigError(f"{field.name}: must be a finite number; it is {value}")
    if "above" in limits and value <= limits["above"]:
        raise ConfigError(f"{field.name}: must be greater than {limits['above']}; it is {value}")
    if "least" in limits and value < limits["least"]:
        raise ConfigError(f"{field.name}: must be at least {limits['least']}; it is {value}")
    if "most" in limits and value > limits["most"]:
        raise ConfigError(f"{field.name}: must be at most {limits['most']}; it is {value}")
    if "below" in limits and value >= limits["below"]:
        raise ConfigError(f"{field.name}: must be below {limits['below']}; it is {value}")


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(kind).items()}


def spans_max_steps(config: ESConfig) -> str | None:
    """The schedule that would be another with another max_steps, as it is written; None when none would."""
    for name in ("lr_scheduler_type", "sigma_scheduler_type"):
        if getattr(config, name) in ("linear", "cosine"):
            return f"{name}: {getattr(config, name)}"
    return None
