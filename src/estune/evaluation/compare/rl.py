"""An RL run of a comparison: TRL's GRPOTrainer, scored and evaluated by the same code as ES.

TRL generates and trains. estune decides where a completion ends, counts its tokens and scores it,
exactly as in ES runs.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from estune.evaluation.compare.token_marks import Curve, PromptSets
from estune.rewards.scoring import RewardFunctions
from estune.run.base_model import base_model
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.workers.base import Evaluation, Work

_PLANNED = 4096  # prompts are prepared for so many steps, then repeated


def train(
    run: ComparisonRun, folder: Path, rows: list[Row], held_out: list[Row] | None, reward_funcs: Any
) -> dict[str, Any]:
    """Run from the start; return the content of the result file.

    Raises:
        InputError: anything in the input that cannot work.
    """
    config = run.config()
    rows = rows_of(rows, "train_dataset")
    rewards = RewardFunctions.of(resolve_rewards(reward_funcs), config)
    rewards.check([name for name in rows[0] if name != "prompt"])
    _, base = base_model(config.model_name_or_path or "", config, None)
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
    trainer = _trainer(run, folder, model, tokenizer, scorer, prompts(run, rows))
    engine = _InTraining(
        trainer.model, TransformersEngine(base, {}, config, trainer.model, tokenizer.inner)
    )
    sets = PromptSets.of(
        run, rows, rows_of(held_out, "eval_dataset") if held_out else None, rewards
    )
    curve = Curve(
        run, folder, lambda: sets.examine(run, engine, trainer.state.global_step, trainer.state)
    )
    curve.begin_afresh()
    trainer.add_callback(_RlMarks(scorer, curve))
    try:
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


def prompts(run: ComparisonRun, rows: Sequence[Row]) -> Dataset:
    """Return the prompts of all steps in sequence, those of an ES run with the same seed.

    `row` is the index of the prompt's row.
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
) -> Any:
    with guarded(ConfigError, "TRL cannot be imported"):
        from trl import GRPOConfig, GRPOTrainer

    on_cpu = engine_device(run.config()) == "cpu"
    own = {
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "output_dir": str(folder / "trl"),
        "use_cpu": on_cpu,
        "bf16": not on_cpu,
        "shuffle_dataset": False,
    }
    with guarded(ConfigError, "rl_kwargs: TRL refuses them"):
        args = GRPOConfig(**own | run.rl)
    with guarded(ConfigError, "TRL's trainer does not start"):
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=scorer.score,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer.inner,
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
        tuned = {known.in_model[name] for name in known.targets(config.target_parameters)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in tuned)
    return model


@dataclass
class _Scorer:
    """The reward function for TRL: all of the run's, weighted. It counts tokens as ES does."""

    rewards: RewardFunctions
    rows: Sequence[Row]
    tokenizer: Tokenizer
    ends: set[int]
    budget: int
    tokens: int = 0
    reward: float = float("nan")

    def score(
        self, completion_ids: list[list[int]], row: list[int], **columns: Any
    ) -> list[float | None]:
        """Return the rewards of the completions of these rows."""
        answers = [self.tokenizer.completion(ids, self.ends, self.budget) for ids in completion_ids]
        rows = [self.rows[number] for number in row]
        first = self.tokens == 0
        self.tokens += sum(len(answer.ids) for answer in answers)
        scores = self.rewards.score(rows, answers, columns.get("trainer_state"), first=first)
        self.reward = scores.fitness
        return [None if value != value else float(value) for value in scores.total]


class _RlMarks(TrainerCallback):  # type: ignore[misc]
    """Evaluates at token marks, ends the run, and times the steps without evaluations."""

    def __init__(self, scorer: _Scorer, curve: Curve) -> None:
        self._scorer, self._curve = scorer, curve
        self._seconds = 0.0
        self._started = 0.0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._curve.look(0, 0, 0.0)

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
        control.should_training_stop = control.should_training_stop or self._curve.look(
            step, tokens, self._seconds
        )
        return control

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **details: Any
    ) -> None:
        self._curve.finish(state.global_step, self._scorer.tokens, self._seconds)


class _InTraining:
    """An `Evaluator` for the model in training; it switches to eval mode and back."""

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
    """Patch the model's generate to stop at stop strings and mark them with an end token.

    TRL does not support stop strings.
    """
    plain, stops = model.generate, Stops(tokenizer.inner, stop)

    def generate(*args: Any, **settings: Any) -> torch.Tensor:
        if "stopping_criteria" in settings:  # an evaluation, which handles them itself
            return plain(*args, **settings)  # type: ignore[no-any-return]
        length = settings["input_ids"].shape[1]
        out = plain(*args, stopping_criteria=[Stopped(stops, length)], **settings)
        for row in out[:, length:]:
            at = stops.first(row.tolist())
            if at is not None and at < len(row):
                row[at:] = end
        return out  # type: ignore[no-any-return]

    model.generate = generate
