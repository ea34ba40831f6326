"""An ES run of a comparison: estune's own trainer, with a callback that evaluates at marks of tokens and ends the run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl

from estune.common.types import Row
from estune.engines.device import dtype_name, engine_dtype
from estune.evaluation.compare.runs import Run
from estune.evaluation.compare.token_marks import Papers, Watch
from estune.theta.journal import exists
from estune.trainer import ESTrainer


def train(
    run: Run, folder: Path, rows: list[Row], held_out: list[Row] | None, reward_funcs: Any
) -> dict[str, Any]:
    """Do the run in `folder`, from its last whole step where it was begun; returns what its result file says of it.

    Raises:
        InputError: anything in the input that cannot work.
    """
    config = dataclasses.replace(run.config(), output_dir=str(folder))
    marks = _EsMarks()
    trainer = ESTrainer(
        config.model_name_or_path, reward_funcs, config, rows, held_out, callbacks=[marks]
    )
    papers = Papers.of(run, trainer.train_rows, trainer.eval_rows, trainer.rewards)
    marks.begin(trainer, Watch(run, folder, lambda: _examine(papers, run, trainer)))
    trainer.train(resume_from_checkpoint=exists(folder))
    _forget_weights(folder)
    return {
        "points": marks.watch.points,
        "engine": config.engine,
        "dtype": "float32" if config.engine == "fake" else dtype_name(engine_dtype(config)),
        "temperature": 0.0,
        "samples": config.population_size,
        "prompts": min(config.batch_size or len(rows), len(rows)),
    }


def _examine(papers: Papers, run: Run, trainer: ESTrainer) -> Any:
    model = trainer.model
    return papers.examine(run, model.workers, model.theta.version, trainer.callbacks.state)


class _EsMarks(TrainerCallback):  # type: ignore[misc]
    """Counts what the metrics tell of tokens and time, from those in the folder on."""

    def begin(self, trainer: ESTrainer, watch: Watch) -> None:
        self._trainer = trainer
        self.watch = watch

    def on_train_begin(
        self, args: Any, state: Any, control: TrainerControl, **details: Any
    ) -> TrainerControl:
        logged = self._trainer.folder.metrics.read()
        self._seconds = sum(record["step_time"] for record in logged)
        self._tokens = logged[-1]["num_tokens"] if logged else 0
        step = logged[-1]["step"] if logged else 0
        if (
            step == self._trainer.model.theta.version
        ):  # else the last step is about to be logged, and comes again
            control.should_training_stop = self.watch.look(step, self._tokens, self._seconds)
        return control

    def on_log(
        self, args: Any, state: Any, control: TrainerControl, logs: dict[str, Any], **details: Any
    ) -> TrainerControl:
        self._seconds += logs["step_time"]
        self._tokens = logs["num_tokens"]
        ended = self.watch.look(self._trainer.model.theta.version, self._tokens, self._seconds)
        control.should_training_stop = control.should_training_stop or ended
        return control

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **details: Any) -> None:
        self.watch.finish(self._trainer.model.theta.version, self._tokens, self._seconds)


def _forget_weights(folder: Path) -> None:
    """The run's checkpoint and snapshot of θ: `estune replay` makes them again from the journal."""
    for path in [folder / "theta", *folder.glob("checkpoint-*")]:
        shutil.rmtree(path, ignore_errors=True)
    print(f"weights not kept; estune replay {folder} makes those of any step again", flush=True)
