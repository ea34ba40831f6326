"""An ES run of a comparison: estune's trainer, with a callback that evaluates at token marks."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl

from estune.common.types import Row
from estune.engines.device import dtype_name, engine_dtype
from estune.evaluation.compare.runs import ComparisonRun
from estune.evaluation.compare.token_marks import Curve, PromptSets
from estune.theta.journal import exists
from estune.trainer import ESTrainer


def train(
    run: ComparisonRun, folder: Path, rows: list[Row], held_out: list[Row] | None, reward_funcs: Any
) -> dict[str, Any]:
    """Run or resume in `folder`; return the content of its result file.

    Raises:
        InputError: the model, the data, a reward function or a setting cannot be used.
    """
    config = dataclasses.replace(run.config(), output_dir=str(folder))
    curve = Curve(run, folder, lambda: _examine(sets, run, trainer))
    trainer = ESTrainer(
        config.model_name_or_path,
        reward_funcs,
        config,
        rows,
        held_out,
        callbacks=[_EsMarks(curve, lambda: trainer)],
    )
    sets = PromptSets.of(run, trainer.train_rows, trainer.eval_rows, trainer.rewards)
    trainer.train(resume_from_checkpoint=exists(folder))
    _delete_weights(folder)
    return {
        "points": curve.points,
        "engine": config.engine,
        "dtype": "float32" if config.engine == "fake" else dtype_name(engine_dtype(config)),
        "temperature": 0.0,
        "samples": config.population_size,
        "prompts": min(config.batch_size or len(rows), len(rows)),
    }


def _examine(sets: PromptSets, run: ComparisonRun, trainer: ESTrainer) -> Any:
    model = trainer.model
    return sets.examine(run, model.workers, model.theta.version, trainer.callbacks.state)


class _EsMarks(TrainerCallback):  # type: ignore[misc]
    """Evaluates θ at token marks, and ends the run when its tokens are used up.

    Args:
        trainer: returns the trainer, which is made after its callbacks.
    """

    def __init__(self, curve: Curve, trainer: Callable[[], ESTrainer]) -> None:
        self._curve = curve
        self._trainer = trainer
        self._seconds = 0.0  # of all steps, also of those before a resume
        self._tokens = 0  # likewise

    def on_train_begin(
        self, args: Any, state: Any, control: TrainerControl, **details: Any
    ) -> TrainerControl:
        logged = self._trainer().folder.metrics.read()
        self._seconds = sum(record["step_time"] for record in logged)
        self._tokens = logged[-1]["num_tokens"] if logged else 0
        step = logged[-1]["step"] if logged else 0
        if step == self._version():  # if not, the trainer will log the last step again
            control.should_training_stop = self._curve.update(step, self._tokens, self._seconds)
        return control

    def on_log(
        self, args: Any, state: Any, control: TrainerControl, logs: dict[str, Any], **details: Any
    ) -> TrainerControl:
        self._seconds += logs["step_time"]
        self._tokens = logs["num_tokens"]
        ended = self._curve.update(self._version(), self._tokens, self._seconds)
        control.should_training_stop = control.should_training_stop or ended
        return control

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **details: Any) -> None:
        self._curve.finish(self._version(), self._tokens, self._seconds)

    def _version(self) -> int:
        return self._trainer().model.theta.version


def _delete_weights(folder: Path) -> None:
    """Delete the run's checkpoints and snapshot, since `estune replay` can compute them again."""
    for path in [folder / "theta", *folder.glob("checkpoint-*")]:
        shutil.rmtree(path, ignore_errors=True)
    print(f"weights deleted; estune replay {folder} rebuilds them at any step", flush=True)
