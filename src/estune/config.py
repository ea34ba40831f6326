"""Every setting of a run, checked before anything is loaded. Importing this does not import torch.

Names are TRL's where the concept is shared (`max_completion_length`, `save_steps`) and the paper's
where it is not (`sigma`, `population_size`). Python, YAML and the command line share the checks.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from estune.common.fields import checked, setting
from estune.common.name_hints import nearest
from estune.errors import ConfigError

# One function per group of settings. resume=True: they may change on resume, because they affect θ
# at most through the engine's rounding and failed rewards. A field's own resume= overrides this.
_es = partial(setting, group="evolution strategy")
_prompts = partial(setting, group="prompts and generation")
_engine = partial(setting, group="engine and workers", resume=True)
_rewards = partial(setting, group="rewards", resume=True)
_eval = partial(setting, group="evaluation", resume=True)
_folder = partial(setting, group="the run's folder", resume=True)
_log = partial(setting, group="logging", resume=True)
_data = partial(setting, group="model, data and rewards")


@dataclass(frozen=True)
class ESConfig:
    """Settings of `ESTrainer`. Defaults are those of the paper (https://arxiv.org/abs/2509.24372).

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names the setting.
    """

    population_size: int = _es(30, "N: perturbed models evaluated per step", least=2)
    sigma: float = _es(1e-3, "σ: standard deviation of the noise added to each weight", above=0)
    learning_rate: float | Literal["auto"] | None = _es(
        None,
        "α: step size, which includes the gradient's 1/σ; default σ/2; auto: α and σ adapt",
        above=0,
    )
    max_steps: int = _es(500, "updates to make in total", resume=True, least=1)
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = _es(
        "constant", "how α changes over max_steps: linear and cosine end near 0"
    )
    warmup_steps: int = _es(0, "steps over which α rises to its full size", least=0)
    sigma_end: float | None = _es(None, "σ of the last step; default sigma throughout", above=0)
    sigma_scheduler_type: Literal["linear", "cosine"] = _es(
        "linear", "how σ moves from sigma to sigma_end over max_steps"
    )
    weight_decay: float = _es(
        0.0, "λ: each update first moves θ back by α·λ of its distance to the base model", least=0
    )
    noise: Literal["iid", "correlated"] = _es(
        "iid",
        "iid: separate noise per parameter; correlated: one shared stream, as in the paper's code",
    )
    antithetic: bool = _es(False, "evaluate each seed twice, at θ+σε and at θ−σε")
    pass_k: int | None = _es(
        None,
        "pass@k fitness with this k; by default fitness is the mean reward",
        least=1,
    )
    pass_reward: float = _es(1.0, "lowest reward with which a completion passes, for pass_k")
    prompt_shaping: Literal["center", "standardize"] | None = _es(
        None, "center: subtract a prompt's mean reward; standardize: also divide by its deviation"
    )
    reward_shaping: Literal["z_score", "centered_rank", "none"] = _es(
        "z_score",
        "how fitness is scaled before the update; none: not scaled, which needs antithetic pairs",
    )
    target_parameters: list[str] | None = _es(
        None,
        "regular expressions; tune only parameters whose name matches one; a mixture of experts "
        "also has the words routers, without_routers and shared_experts; default all, but in a "
        "model that sees only its language model",
    )
    seed: int = _es(42, "seed of the noise and of the order of the prompts", least=0, below=2**63)

    batch_size: int | None = _prompts(
        None, "prompts per member and step, the same for all members; default all", least=1
    )
    max_completion_length: int = _prompts(256, "maximum of new tokens in a completion", least=1)
    stop: list[str] | None = _prompts(None, "strings that end a completion and are cut from it")
    chat_template_kwargs: dict[str, Any] | None = _prompts(
        None, "arguments of the chat template for conversational prompts"
    )

    engine: Literal["transformers", "vllm", "fake"] = _engine(
        "transformers", "what generates completions; fake serves tests"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _engine(
        "auto",
        "type of the engine's weights; auto: bfloat16 if the device computes in it, else float32",
    )
    device: str = _engine("auto", "device of the engine: auto, cpu, cuda, cuda:1, mps, xpu")
    center_device: Literal["auto", "cuda", "cpu"] = _engine(
        "auto", "where θ lives; auto: the engine's GPU if it fits there, else host memory"
    )
    generation_batch_size: int = _engine(
        64, "sequences at a time; halved when memory runs out", least=1
    )
    model_init_kwargs: dict[str, Any] | None = _engine(None, "arguments of from_pretrained")
    trust_remote_code: bool = _engine(False, "run model code that comes with a checkpoint")
    vllm_gpu_memory_utilization: float | None = _engine(
        None,
        "fraction of GPU memory for vLLM; default vLLM's own; a CPU has a 4 GiB cache instead",
        above=0,
        most=1,
    )
    vllm_tensor_parallel_size: int = _engine(1, "GPUs that share one vLLM engine", least=1)
    vllm_max_model_length: int | None = _engine(
        None, "tokens of a prompt and its completion; default the model's limit", least=1
    )
    vllm_enforce_eager: bool = _engine(False, "no CUDA graphs: starts faster, generates slower")
    vllm_model_impl: Literal["auto", "vllm", "transformers"] = _engine(
        "auto", "which implementation of the model vLLM uses: its own, or transformers'"
    )
    engine_kwargs: dict[str, Any] | None = _engine(
        None, "further arguments of vllm.LLM, such as {max_num_seqs: 512}"
    )
    workers: Literal["local", "ray", "accelerate"] = _engine(
        "local",
        "local: one engine here; ray: one per Ray actor; accelerate: one per launched process",
    )
    num_workers: int | None = _engine(
        None,
        "engines under ray; default as many as the GPUs allow, or one per node without GPUs",
        least=1,
    )
    ray_address: str | None = _engine(
        None,
        "address of a Ray cluster; auto: this machine's; by default one is started for the run",
    )
    worker_timeout: float = _engine(
        3600, "seconds that one job of a Ray worker may take before the worker is replaced", above=0
    )

    reward_weights: list[float] | None = _rewards(
        None, "one weight per reward function; default 1 each", resume=False
    )
    reward_timeout: float = _rewards(60, "seconds until a reward function is killed", above=0)
    reward_workers: int | None = _rewards(
        None,
        "maximum of reward processes; default one per core, 4 to 16; 0: run in the trainer",
        least=0,
    )
    reward_memory: float | None = _rewards(
        None, "GiB per reward process; default a quarter of the machine's", above=0
    )
    reward_concurrency: int = _rewards(64, "calls of an async reward function at a time", least=1)
    on_reward_error: Literal["lowest", "zero", "drop", "raise"] = _rewards(
        "lowest",
        "score when a reward function fails: lowest of the step, zero, drop (no score), or raise",
    )

    eval_strategy: Literal["no", "steps"] = _eval(
        "no", "steps: evaluate every eval_steps and after the last step"
    )
    eval_steps: int | None = _eval(
        None, "steps between evaluations; default only after the last step", least=1
    )
    eval_on_start: bool = _eval(False, "evaluate the base model first")
    metric_for_best_model: str | None = _eval(
        None, "evaluation metric that picks the best checkpoint, such as reward"
    )
    greater_is_better: bool = _eval(True, "whether a higher metric_for_best_model is better")
    load_best_model_at_end: bool = _eval(False, "end with the parameters of the best checkpoint")
    early_stopping_patience: int | None = _eval(
        None, "stop after this many evaluations without improvement; default never", least=1
    )
    early_stopping_threshold: float = _eval(
        0.0, "smallest gain of metric_for_best_model that counts as an improvement", least=0
    )

    output_dir: str = _folder("estune-output", "folder of the run: journal, metrics, checkpoints")
    save_steps: int = _folder(100, "steps between checkpoints; the last is always saved", least=1)
    save_total_limit: int | None = _folder(
        None, "checkpoints to keep, not counting the best one; default all", least=1
    )
    resume_from_checkpoint: bool = _folder(False, "continue the run in output_dir")

    logging_steps: int = _log(
        1, "steps between lines for trackers, and on a screen without a progress bar", least=1
    )
    log_level: Literal["debug", "info", "warning", "error"] = _log(
        "info", "lowest severity of messages on standard error"
    )
    report_to: list[str] | None = _log(
        None, "trackers, through accelerate: tensorboard, wandb, trackio, mlflow, …"
    )
    run_name: str | None = _log(None, "run's name for trackers; default the folder's name")
    log_completions: bool = _log(False, "print the best member's completions every logging_steps")
    num_completions_to_print: int = _log(8, "rows in the table of sample completions", least=0)
    profile: bool = _log(False, "write profile-K.json from step K on, for ui.perfetto.dev")
    disable_tqdm: bool = _log(False, "a line every logging_steps, no progress bar")
    push_to_hub: bool = _log(False, "upload the last checkpoint when training ends")
    hub_model_id: str | None = _log(None, "repository to push to; default the folder's name")

    def __post_init__(self) -> None:
        _check_resume_is_no_path(self.resume_from_checkpoint)
        for name, value in checked(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        _check_strategy(self)
        _check_schedules(self)
        if self.learning_rate == "auto":
            _check_auto(self)
        _check_engine(self)
        _check_best_model(self)

    @property
    def alpha(self) -> float:
        """α, the learning rate at its full size: σ/2 unless set to a number."""
        rate = self.learning_rate
        return rate if isinstance(rate, (int, float)) else self.sigma / 2


@dataclass(frozen=True)
class RunConfig(ESConfig):
    """Settings of `estune train`: an `ESConfig`, and the model, data and rewards under TRL's names.

    Raises:
        ConfigError: as `ESConfig`, or datasets is given together with task or dataset_name.
    """

    model_name_or_path: str | None = _data(None, "hub id, local folder or .gguf file", resume=True)
    model_revision: str | None = _data(None, "branch, tag or commit of a hub model")
    task: str | None = _data(None, "built-in data and reward by name; `estune tasks` lists them")
    dataset_name: str | None = _data(None, "hub id, folder, or JSON, JSONL, Parquet or CSV file")
    dataset_config: str | None = _data(None, "configuration of a hub dataset")
    datasets: list[dict[str, Any]] | None = _data(
        None, "a mixture: [{task: countdown, weight: 2}, {path: x.jsonl, reward_funcs: [mine.f]}]"
    )
    dataset_train_split: str = _data("train", "split to train on")
    dataset_test_split: str = _data("test", "split to evaluate on, if there is one", resume=True)
    eval_dataset_name: str | None = _data(
        None, "separate dataset to evaluate on, in the same form as dataset_name", resume=True
    )
    max_train_samples: int | None = _data(None, "use only the first training rows", least=1)
    max_eval_samples: int | None = _data(
        None, "use only the first held-out rows", resume=True, least=1
    )
    reward_funcs: list[str] | None = _data(
        None, "built-in names, dotted paths such as my_rewards.short, or reward models"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.datasets is not None and (self.task or self.dataset_name):
            raise ConfigError("datasets: replaces task and dataset_name; give only one of them")


# Settings that may change on resume. max_steps may not change if a schedule depends on it:
# `depends_on_max_steps`.
MAY_CHANGE_ON_RESUME = frozenset(
    field.name for field in dataclasses.fields(RunConfig) if field.metadata["resume"]
)

C = TypeVar("C", bound=ESConfig)


def build(kind: type[C], values: dict[str, Any], where: str = "") -> C:
    """Return a config of `kind`; `where` begins the message of every error.

    Raises:
        ConfigError: a key is unknown (the message names the nearest setting), or a value is wrong.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}unknown setting {key!r}{nearest(str(key), names)}")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def depends_on_max_steps(config: ESConfig) -> str | None:
    """Return the schedule that depends on max_steps, as `name: value`, or None."""
    if config.lr_scheduler_type in ("linear", "cosine"):
        return f"lr_scheduler_type: {config.lr_scheduler_type}"
    if config.sigma_end is not None:
        return f"sigma_scheduler_type: {config.sigma_scheduler_type}"
    return None


def _check_resume_is_no_path(value: Any) -> None:
    signs = ("/", "\\", "checkpoint-")
    if not isinstance(value, bool) and any(sign in str(value) for sign in signs):
        raise ConfigError(
            "resume_from_checkpoint: is true or false, not a path: "
            f"a run continues from the journal in its output_dir; it is {value!r}"
        )


def _check_strategy(config: ESConfig) -> None:
    if config.antithetic and config.population_size % 2:
        size = config.population_size
        raise ConfigError(
            f"population_size: antithetic members come in pairs, so {size} must be even"
        )
    if config.reward_shaping == "none" and not config.antithetic:
        raise ConfigError(
            "reward_shaping: none needs antithetic pairs, whose members are each other's baseline; "
            "set antithetic to true, or choose z_score"
        )
    if config.pass_k is not None and config.pass_k >= config.population_size:
        size = config.population_size
        raise ConfigError(f"pass_k: must be below population_size, {size}; it is {config.pass_k}")
    if config.pass_k is not None and config.prompt_shaping:
        raise ConfigError("prompt_shaping: pass_k compares members per prompt already; drop one")


def _check_auto(config: ESConfig) -> None:
    clashes = {
        "lr_scheduler_type": config.lr_scheduler_type != "constant",
        "sigma_end": config.sigma_end is not None,
        "weight_decay": config.weight_decay > 0,
        "pass_k": config.pass_k is not None,
        "reward_shaping": config.reward_shaping == "none",
    }
    for name in filter(clashes.get, clashes):
        raise ConfigError(
            f"{name}: learning_rate auto sets α and σ from the mean reward, "
            f"so {name} cannot be used with it; leave {name} out, or give learning_rate a number"
        )


def _check_schedules(config: ESConfig) -> None:
    warmup = config.warmup_steps
    steps = config.max_steps
    decay = config.weight_decay
    if warmup and config.lr_scheduler_type == "constant":
        raise ConfigError(
            "warmup_steps: the schedule constant has no warm-up; "
            "choose constant_with_warmup, linear or cosine"
        )
    if warmup >= steps:
        raise ConfigError(f"warmup_steps: must be below max_steps, {steps}; it is {warmup}")
    if config.sigma_end is None and config.sigma_scheduler_type != "linear":
        raise ConfigError("sigma_scheduler_type: needs sigma_end, the σ of the last step")
    if config.alpha * decay > 1:
        raise ConfigError(
            f"weight_decay: α·λ must be at most 1; it is {config.alpha:g} · {decay:g}"
        )


def _check_engine(config: ESConfig) -> None:
    for name in ("model_init_kwargs", "engine_kwargs"):
        if "trust_remote_code" in (getattr(config, name) or {}):
            raise ConfigError(f"{name}: trust_remote_code is a setting; give that instead")
    if "" in (config.stop or []):
        raise ConfigError("stop: an empty string would end every completion at once; leave it out")
    if config.workers != "ray" and config.num_workers not in (None, 1):
        ways = {"local": "choose workers: ray", "accelerate": "use accelerate's --num_processes"}
        raise ConfigError(
            f"num_workers: with workers {config.workers} there is one engine per process, "
            f"so it cannot be {config.num_workers}; {ways[config.workers]}"
        )
    if config.engine != "vllm" and config.vllm_tensor_parallel_size != 1:
        raise ConfigError(f"vllm_tensor_parallel_size: needs engine: vllm; it is {config.engine}")


def _check_best_model(config: ESConfig) -> None:
    for name in ("load_best_model_at_end", "early_stopping_patience"):
        if getattr(config, name) and not config.metric_for_best_model:
            raise ConfigError(f"{name}: set metric_for_best_model too, such as reward")
    if config.metric_for_best_model and config.eval_strategy == "no":
        raise ConfigError("metric_for_best_model: needs evaluations; set eval_strategy to steps")
