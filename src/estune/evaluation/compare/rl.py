"""An RL run of a comparison, by TRL's GRPOTrainer.

TRL generates completions and trains. estune decides where a completion ends, counts its tokens,
scores it and evaluates the model, with the same code as in ES runs.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from estune import strategy
from estune.common.guard import guarded
from estune.common.types import Prompt, Row, Sampling, Variant
from estune.config import RunConfig
from estune.engines.device import engine_device
from estune.engines.stops import Stopped, Stops
from estune.engines.tokens import Tokenizer
from estune.engines.transformers import TransformersEngine
from estune.errors import ConfigError, EngineError, ModelError
from estune.evaluation.compare.runs import ComparisonRun
from estune.evaluation.compare.token_marks import Curve, PromptSets, SetMetrics
from estune.rewards.scoring import RewardFunctions
from estune.run.base_model import base_model
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import Layout, layout
from estune.workers.base import Evaluation, Work

_PLANNED = 4096  # the dataset has prompts for at most so many steps; then TRL starts over


def train(
    run: ComparisonRun, folder: Path, rows: list[Row], held_out: list[Row] | None, reward_funcs: Any
) -> dict[str, Any]:
    """Run from the start; return the content of the result file.

    Raises:
        InputError: the model, the data, a reward function or a setting cannot be used.
    """
    rows = rows_of(rows, "train_dataset")
    rewards = RewardFunctions.of(resolve_rewards(reward_funcs), run.config())
    rewards.check([name for name in rows[0] if name != "prompt"])
    sets = PromptSets.of(
        run, rows, rows_of(held_out, "eval_dataset") if held_out else None, rewards
    )
    try:
        trainer, curve = _set_up(run, folder, rows, sets)
        with guarded(EngineError, "TRL's trainer failed"):
            trainer.train()
    finally:
        rewards.close()
    samples = run.rl["num_generations"]
    return {
        "points": curve.points,
        "engine": "transformers",
        "dtype": "float32" if trainer.args.use_cpu else "float32, bfloat16 autocast",
        "temperature": run.rl["temperature"],
        "samples": samples,
        "prompts": trainer.args.generation_batch_size // samples,
    }


def _set_up(
    run: ComparisonRun, folder: Path, rows: Sequence[Row], sets: PromptSets
) -> tuple[Any, Curve]:
    """Return TRL's trainer, and the curve to which it adds points while it trains."""
    config = run.config()
    _, base = base_model(config.model_name_or_path or "", config, None)
    tokenizer, model = Tokenizer(base, config), _trainable(base, config)
    ends = tokenizer.ends(model.generation_config)
    if config.stop:
        _stop_at(model, tokenizer, config.stop, min(ends))
    scorer = _Scorer(sets.rewards, rows, tokenizer, ends, config.max_completion_length)

    def examine() -> SetMetrics:  # called in training, when trainer and engine exist
        return sets.examine(run, engine, trainer.state.global_step, trainer.state)

    curve = Curve(run, folder, examine)
    curve.begin_afresh()
    dataset, marks = prompts(run, rows), _RlMarks(scorer, curve)
    trainer = _trainer(run, folder, model, tokenizer, scorer, dataset, marks)
    engine = _InTraining(
        trainer.model,
        TransformersEngine(base, Layout({}, {}), config, trainer.model, tokenizer.inner),
    )
    return trainer, curve


def prompts(run: ComparisonRun, rows: Sequence[Row]) -> Dataset:
    """Return the prompts of all steps, one after another: those that ES sees with the same seed.

    The column `row` is the index of the prompt's row.
    """
    config = run.config()
    steps = range(1, min(config.max_steps, _PLANNED) + 1)
    order = [row for step in steps for row in strategy.batch(config, step, len(rows))]
    return Dataset.from_list([{"prompt": rows[row]["prompt"], "row": row} for row in order])


def _trainer(
    run: ComparisonRun,
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    scorer: "_Scorer",
    dataset: Dataset,
    marks: "_RlMarks",
) -> Any:
    """Return TRL's GRPOTrainer."""
    with guarded(ConfigError, "TRL cannot be imported"):
        from trl import GRPOConfig, GRPOTrainer

    on_cpu = engine_device(run.config()) == "cpu"
    quiet = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    where = {
        "output_dir": str(folder / "trl"),
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "shuffle_dataset": False,
    }
    with guarded(ConfigError, "rl_kwargs: TRL refuses them"):
        args = GRPOConfig(**quiet | where | run.rl)
    with guarded(ConfigError, "TRL's trainer does not start"):
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=scorer.score,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer.inner,
            callbacks=[marks],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainable(folder: Path, config: RunConfig) -> Any:
    """Return the model in fp32, with gradients for `target_parameters` only."""
    settings = {
        "dtype": torch.float32,
        "trust_remote_code": config.trust_remote_code,
        **(config.model_init_kwargs or {}),
    }
    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    if config.target_parameters:
        known = layout(open_checkpoint(folder), trust_remote_code=config.trust_remote_code)
        tuned = _inside(known, config.target_parameters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in tuned)
    return model


def _inside(known: Layout, patterns: list[str]) -> set[str]:
    """Return the parameters inside the model that `target_parameters` means.

    Raises:
        ConfigError: only a part of one is meant, which gradients cannot be limited to.
    """
    names = known.targets(patterns)
    tuned = {inside for name in names for inside in known.inside(name)}
    for name in known.in_model.keys() - {*names}:
        if known.inside(name) & tuned:
            raise ConfigError(
                f"target_parameters: leaves out {name}, which the model fuses with tensors that "
                "are tuned; RL can only train all of them or none, so choose all experts or none"
            )
    return tuned


class _Scorer:
    """The reward function that TRL calls: the weighted sum of the run's. It also counts tokens."""

    def __init__(
        self,
        rewards: RewardFunctions,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        ends: set[int],
        budget: int,
    ) -> None:
        self._rewards = rewards
        self._rows = rows
        self._tokenizer = tokenizer
        self._ends = ends
        self._budget = budget
        self.tokens = 0  # of all completions so far
        self.reward = float("nan")  # the mean reward of the last batch

    def score(
        self, completion_ids: list[list[int]], row: list[int], **columns: Any
    ) -> list[float | None]:
        """Return the reward of each completion, None where there is none.

        TRL fixes the names: `row` is the dataset's column, one row index per completion.
        """
        completions = [
            self._tokenizer.completion(ids, self._ends, self._budget) for ids in completion_ids
        ]
        rows = [self._rows[index] for index in row]
        first = self.tokens == 0
        self.tokens += sum(len(completion.ids) for completion in completions)
        scores = self._rewards.score(rows, completions, columns.get("trainer_state"), first=first)
        self.reward = scores.mean_reward
        return [None if math.isnan(value) else float(value) for value in scores.total]


class _RlMarks(TrainerCallback):  # type: ignore[misc]
    """Evaluates the model at token marks, and ends the run when its tokens are used up."""

    def __init__(self, scorer: _Scorer, curve: Curve) -> None:
        self._scorer = scorer
        self._curve = curve
        self._seconds = 0.0  # of all steps, without evaluations
        self._started = 0.0  # when the current step began

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._curve.update(0, 0, 0.0)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> TrainerControl:
        took = time.perf_counter() - self._started
        self._seconds += took
        step = state.global_step
        tokens = self._scorer.tokens
        reward = f"reward {self._scorer.reward:.3g}"
        print(f"step {step}/{state.max_steps}  {reward}  {tokens} tokens  {took:.1f} s", flush=True)
        ended = self._curve.update(step, tokens, self._seconds)
        control.should_training_stop = control.should_training_stop or ended
        return control

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._curve.finish(state.global_step, self._scorer.tokens, self._seconds)


class _InTraining:
    """Generates completions with the model that TRL trains, for evaluations during training."""

    def __init__(self, model: Any, engine: TransformersEngine) -> None:
        self._model = model
        self._engine = engine

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        training, started = self._model.training, time.perf_counter()
        self._model.eval()  # switches off dropout
        try:
            completions = self._engine.generate(
                prompts, max_completion_length=max_completion_length, sampling=sampling
            )
        finally:
            self._model.train(training)
        yield Evaluation(0, completions, (Work(1, 0.0, time.perf_counter() - started),))


def _stop_at(model: Any, tokenizer: Tokenizer, stop: Sequence[str], end: int) -> None:
    """Make the model's `generate` stop at stop strings, which TRL does not support.

    From the first stop string on, tokens are replaced by `end`, so that TRL sees the end there.
    """
    plain, stops = model.generate, Stops(tokenizer.inner, stop)

    def generate(*args: Any, **settings: Any) -> torch.Tensor:
        if "stopping_criteria" in settings:  # called by estune's engine, which stops by itself
            return plain(*args, **settings)  # type: ignore[no-any-return]
        count, length = settings["input_ids"].shape
        criterion = Stopped([stops] * count, [[]] * count, length)
        out = plain(*args, stopping_criteria=[criterion], **settings)
        for row in out[:, length:]:
            at = stops.first(row.tolist())
            if at is not None and at < len(row):
                row[at:] = end
        return out  # type: ignore[no-any-return]

    model.generate = generate
