"""An RL run of a comparison: TRL's GRPOTrainer on the same prompts, scored and evaluated by the same code as ES.

TRL generates, and trains; what a completion is, how many tokens it has and what it earns estune says, as it does of its
own, so that stop strings, the end token, reward functions that fail and the budget count alike.
"""

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
from estune.evaluation.compare.runs import Run
from estune.evaluation.compare.token_marks import Papers, Watch
from estune.rewards.scoring import RewardFunctions
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint, resolve
from estune.theta.parameters import layout
from estune.workers.base import Evaluation, Work

_PLANNED = 4096  # steps whose prompts are laid out; later ones repeat them


def train(
    run: Run, folder: Path, rows: list[Row], held_out: list[Row] | None, reward_funcs: Any
) -> dict[str, Any]:
    """Do the run from its beginning; returns what its result file says of it.

    Raises:
        InputError: anything in the input that cannot work.
    """
    config = run.config()
    rows = rows_of(rows, "train_dataset")
    rewards = RewardFunctions.of(resolve_rewards(reward_funcs), config)
    rewards.check([name for name in rows[0] if name != "prompt"])
    base = resolve(
        config.model_name_or_path or "",
        config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    tokenizer, model = Tokenizer(base, config), _trainable(base, config)
    scorer = _Scorer(
        rewards,
        rows,
        tokenizer,
        tokenizer.ends(model.generation_config),
        config.max_completion_length,
    )
    if config.stop:
        _stop_at(model, tokenizer, config.stop, min(tokenizer.ends(model.generation_config)))
    marks = _RlMarks(scorer)
    trainer = _trainer(run, folder, model, tokenizer, scorer, prompts(run, rows), marks)
    engine = _InTraining(
        trainer.model, TransformersEngine(base, {}, config, trainer.model, tokenizer.inner)
    )
    papers = Papers.of(run, rows, rows_of(held_out, "eval_dataset") if held_out else None, rewards)
    marks.watch = Watch(
        run, folder, lambda: papers.examine(run, engine, trainer.state.global_step, trainer.state)
    )
    marks.watch.begin_afresh()
    try:
        with guarded(EngineError, "TRL's trainer failed"):
            trainer.train()
    finally:
        rewards.close()
    about = {
        "engine": "transformers",
        "dtype": "float32" if trainer.args.use_cpu else "float32, bfloat16 autocast",
    }
    samples = run.rl["num_generations"]
    drawn = {
        "temperature": run.rl["temperature"],
        "samples": samples,
        "prompts": trainer.args.generation_batch_size // samples,
    }
    return {"points": marks.watch.points} | about | drawn


def prompts(run: Run, rows: Sequence[Row]) -> Dataset:
    """The prompts of each step, one after the other, as an ES run of the same seed asks them; `row` leads back to all columns."""
    config = run.config()
    steps = range(1, min(config.max_steps, _PLANNED) + 1)
    order = [row for step in steps for row in strategy.batch(config, step, len(rows))]
    return Dataset.from_list([{"prompt": rows[row]["prompt"], "row": row} for row in order])


def _trainer(
    run: Run,
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    scorer: "_Scorer",
    dataset: Dataset,
    marks: "_RlMarks",
) -> Any:
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
    """The model in fp32, with gradients for `target_parameters` alone where some are named."""
    settings = {
        "dtype": torch.float32,
        "trust_remote_code": config.trust_remote_code,
        **(config.model_init_kwargs or {}),
    }
    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    if config.target_parameters:
        known = layout(open_checkpoint(folder), trust_remote_code=config.trust_remote_code)
        tuned = {known.in_model[name] for name in known.targets(config.target_parameters)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in tuned)
    return model


class _Scorer:
    """The one reward function that TRL gets: all of the run's, weighted; it counts the tokens as ES does."""

    def __init__(
        self,
        rewards: RewardFunctions,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        ends: set[int],
        budget: int,
    ) -> None:
        self._rewards, self._rows, self._tokenizer, self._ends, self._budget = (
            rewards,
            rows,
            tokenizer,
            ends,
            budget,
        )
        self.tokens = 0
        self.reward = float("nan")

    def score(
        self, completion_ids: list[list[int]], row: list[int], **columns: Any
    ) -> list[float | None]:
        """What the completions, which answer the rows of these numbers, earn."""
        answers = [
            self._tokenizer.completion(ids, self._ends, self._budget) for ids in completion_ids
        ]
        rows, first = [self._rows[number] for number in row], self.tokens == 0
        self.tokens += sum(len(answer.ids) for answer in answers)
        scores = self._rewards.score(rows, answers, columns.get("trainer_state"), first=first)
        self.reward = scores.fitness
        return [None if value != value else float(value) for value in scores.total]


class _RlMarks(TrainerCallback):  # type: ignore[misc]
    """Evaluates at marks of tokens, ends the run, and measures the time that steps take without evaluations."""

    watch: Watch

    def __init__(self, scorer: _Scorer) -> None:
        self._scorer = scorer
        self._seconds = 0.0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self.watch.look(0, 0, 0.0)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> TrainerControl:
        took = time.perf_counter() - self._started
        self._seconds += took
        step, tokens = state.global_step, self._scorer.tokens
        print(
            f"step {step}/{state.max_steps}  reward {self._scorer.reward:.3g}  {tokens} tokens  {took:.1f} s",
            flush=True,
        )
        control.should_training_stop = control.should_training_stop or self.watch.look(
            step, tokens, self._seconds
        )
        return control

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self.watch.finish(state.global_step, self._scorer.tokens, self._seconds)


class _InTraining:
    """What `evaluate` asks of workers, from a model that is being trained: it answers in eval mode, then goes on as it was."""

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
        self._model.eval()
        try:
            answers = self._engine.generate(
                prompts, max_completion_length=max_completion_length, sampling=sampling
            )
        finally:
            self._model.train(training)
        yield Evaluation(0, answers, (Work(1, 0.0, time.perf_counter() - started),))


def _stop_at(model: Any, tokenizer: Tokenizer, stop: Sequence[str], end: int) -> None:
    """Let the model's generate end rows at stop strings, which TRL cannot ask of it; the end token behind them tells it."""
    plain, stops = model.generate, Stops(tokenizer.inner, stop)

    def generate(*args: Any, **settings: Any) -> torch.Tensor:
        if "stopping_criteria" in settings:  # an evaluation, which looks for them itself
            return plain(*args, **settings)  # type: ignore[no-any-return]
        length = settings["input_ids"].shape[1]
        out = plain(*args, stopping_criteria=[Stopped(stops, length)], **settings)
        for row in out[:, length:]:
            if (at := stops.first(row.tolist())) is not None and at < len(
                row
            ):  # else nothing follows it
                row[at:] = end
        return out  # type: ignore[no-any-return]

    model.generate = generate
