"""The trainer, and in `ESTrainer._step` the algorithm: one update of θ, from seeds to journal.

    config = ESConfig(output_dir="out")
    trainer = ESTrainer(model="…", reward_funcs=short, args=config, train_dataset=rows)
    trainer.train()

The interface is that of TRL's trainers.
"""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from estune import strategy
from estune.common.resources import check_disk
from estune.common.types import Row, ThetaUpdate, Unperturbed
from estune.config import ESConfig
from estune.errors import ConfigError, DataError
from estune.monitor.callbacks import Callbacks
from estune.monitor.console import Screen
from estune.monitor.theta_evaluation import ThetaEvaluation, evaluate_theta
from estune.monitor.timeline import Timeline
from estune.monitor.trackers import check_trackers
from estune.rewards.scoring import RewardFunctions
from estune.run.data_fingerprint import digest
from estune.run.folder import RunFolder
from estune.run.log import RunLog
from estune.run.milestones import best_step, evaluates, saves, trainer_state
from estune.run.mixture import Mixture
from estune.run.model import Model
from estune.run.publish import push, write_card, write_config
from estune.run.resume import as_recorded, check_resumable, header, restore
from estune.run.step_evaluation import StepEvaluation
from estune.run.stopping import Stop, graceful
from estune.run.update import Update
from estune.strategy import schedules, step_size
from estune.strategy.search import SizeSearch
from estune.strategy.shaping import fitness_of
from estune.tasks.image_rows import check_shown
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of, warn_of_columns_not_shown
from estune.theta.journal import Journal, exists


@dataclass(frozen=True)
class TrainOutput:
    """What `train` returns: the number of updates in θ, and the last step's metrics."""

    global_step: int
    metrics: dict[str, Any]


class ESTrainer:
    """Fine-tunes all parameters of a causal LM by evolution strategies.

    Args:
        model: hub id, folder or .gguf file, or a transformers model (saved in `output_dir` first).
        reward_funcs: one or several callables, built-in names or dotted paths, called as in TRL.
        args: the settings; default `ESConfig()`.
        train_dataset: a `Mixture`, a `datasets.Dataset` or a list of mappings, with a column
            `prompt` (text or messages).
        eval_dataset: the same, held out.
        processing_class: a tokenizer to use instead of the model's own.
        callbacks: transformers `TrainerCallback`s; their `args` is the `ESConfig`.

    Raises:
        InputError: the input cannot work; raised before a model is loaded where possible.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: ESConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        self.args = args or ESConfig()
        self.rewards = RewardFunctions.of(resolve_rewards(reward_funcs), self.args)
        self.train_rows = _rows(train_dataset, "train_dataset")
        self.eval_rows = _rows(eval_dataset, "eval_dataset")
        self.mixture = train_dataset if isinstance(train_dataset, Mixture) else None
        self._check()
        self._data = [*self.train_rows, *(self.mixture.settings if self.mixture else [])]
        self._fingerprint = digest(self._data)
        datasets = {"train_dataset": self.train_rows, "eval_dataset": self.eval_rows}
        prompts = {name: [row["prompt"] for row in rows] for name, rows in datasets.items()}
        self.model = Model(model, self.args, processing_class, prompts)
        for name, rows in datasets.items() if self.model.layout.sees else ():
            check_shown(rows, name)
        self.folder = RunFolder(self.args)
        self.screen = Screen(self.args)
        self.callbacks = Callbacks(self.args, callbacks or [])
        self.log = RunLog(self.args, self.folder, self.screen, self.callbacks)
        self._timeline = Timeline()
        self._trained = False

    def train(self, resume_from_checkpoint: bool | None = None) -> TrainOutput:
        """Train to `max_steps` updates; a resume continues after the journal's last whole step.

        Raises:
            InputError: the folder holds a run but this is not a resume, it holds another run, or
                a reward function failed.
            KeyboardInterrupt, SystemExit: on Ctrl-C or SIGTERM, after a clean stop.
        """
        if not self.train_rows:
            raise DataError("train_dataset: give one; it is needed to train")
        resume = self._resumes(resume_from_checkpoint)
        if not self.model.leads:
            self.model.workers.serve()
            return TrainOutput(self.model.theta.version, {})
        needed = self.folder.needs(self.model)
        what = "the checkpoints and the snapshot of θ"
        check_disk(self.folder.path, needed, what, advice="keep fewer with save_total_limit")
        with self.folder.locked():
            if not resume:
                self.folder.check_fresh(self.model.checkpoint.folder)
            self.screen.say(self.model.describe())
            for line in filter(None, (self.model.describe_left_out(), self.model.placement.why)):
                self.screen.say(line)
            # Reading `workers` starts them. They compare their weights with θ, which is θ₀ now.
            workers = self.model.workers
            try:
                self.log.trackers.start()
                return self._train(self._journal())
            finally:
                self.screen.stop()
                self.rewards.close()
                self.log.trackers.close()
                workers.release()

    def evaluate(self) -> dict[str, Any]:
        """Score θ on the held-out data; the names of the metrics start with `eval_`.

        Raises:
            DataError: there is no eval_dataset.
        """
        return self.held_out().eval_metrics

    def held_out(self) -> ThetaEvaluation:
        """Like `evaluate`, with the completions and one record per held-out row.

        If several processes were launched together, only the first one gets them.
        """
        if not self.eval_rows:
            raise DataError("eval_dataset: give one; it is needed to evaluate")
        workers = self.model.workers
        if not self.model.leads:
            workers.serve()
            return ThetaEvaluation({}, [])
        try:
            return self._held_out()
        finally:
            self.rewards.close()
            workers.release()

    def save_model(self, output_dir: str | None = None) -> None:
        """Write θ as a checkpoint that transformers and vLLM load; default `output_dir/final`."""
        if self.model.leads:
            with nullcontext() if output_dir else self.folder.writing():
                folder = self.folder.model_folder(output_dir)
                self.model.write(folder, self.folder.identity(self.model))

    def push_to_hub(self, commit_message: str = "End of training") -> str:
        """Upload θ with the model card to `hub_model_id`; returns the commit's address."""
        if not self.model.leads:
            return ""
        self.save_model()
        return push(self.folder.path, self.args, commit_message)

    def _train(self, journal: Journal) -> TrainOutput:
        self.log.read()
        self.callbacks.call("on_train_begin")
        begun = journal.last
        trace = self.folder.path / f"profile-{begun}.json" if self.args.profile else None
        self._timeline = Timeline(trace)
        with graceful() as stop, closing(self._timeline):
            self._after(journal)
            self.screen.start(begun)
            while journal.last < self.args.max_steps and not self.log.stops_early(journal.last):
                stop.check()
                self._step(journal, stop)
                self._after(journal)
            self.screen.stop()
            if journal.last > begun:
                self.screen.say(self._timeline.summary())
        self.callbacks.call("on_train_end")
        return self._finish(journal)

    def _step(self, journal: Journal, stop: Stop) -> None:
        """Make one update, μ ← μ + α · 1/N · Σ R̃ₙ·εₙ (Qiu et al. 2026, section 3), and record it.

        Their μ is θ here; [1] to [7] are the paper's seven innovations.
        """
        config, step = self.args, journal.last + 1
        rows = self._batch(journal)
        evaluation = self._evaluation(step, rows, stop)
        self.callbacks.begin_step(step)

        size = step_size.begin(config, step, journal.control, self.model.theta.root_mean_square)
        seeds = strategy.ask(config, step)  # N integers stand for the noise [1]
        # Each member says how to compute θ + σ·εₙ; the engines do it later, layer by layer [2].
        members = strategy.members(config, step, seeds, size.sigma)
        reference = [Unperturbed(step - 1)] if size.needs_reference else []
        scored = evaluation([*members, *reference])  # greedy decoding [5], on all workers [6]
        population = scored[: len(members)]
        rewards = np.stack([member.rewards for member in population])  # (N, B)
        fitness = fitness_of(config, rewards)  # Rₙ (N,)

        # θ's own rewards, from this step or the previous one; None unless learning_rate is auto.
        theta_rewards = scored[-1].rewards if size.needs_reference else size.reference
        finite_members = sum(member.finite for member in population)
        search = SizeSearch(config, size, rewards, fitness, theta_rewards, finite_members)
        # With a given learning rate nothing is tried, and search.alpha is the schedule's α.
        while (alpha := search.next_size()) is not None:
            [tried] = evaluation([strategy.candidate(config, step, seeds, fitness, alpha)])
            search.add(alpha, tried.rewards)

        # cₙ = α/N · R̃ₙ: z-scores [4], with 1/σ included in α [7].
        coefficients = strategy.bounded(step, strategy.tell(config, fitness, alpha=search.alpha))
        decay = schedules.decay(config, step) if coefficients else 0.0
        with self._timeline.span("update") as span:  # θ ← θ + Σ cₙ·εₙ, by layer and seed [3]
            self.model.workers.update(
                ThetaUpdate(seeds, coefficients, config.noise, version=step - 1, decay=decay)
            )
        self.callbacks.end_step(step)
        update = Update(
            step, seeds, coefficients, rows, rewards, fitness, size, search, decay, span.seconds
        )
        self._record(journal, update, evaluation)

    def _record(self, journal: Journal, update: Update, evaluation: StepEvaluation) -> None:
        """Append the update to the journal, which the folder writes, with its metrics as notes."""
        self.log.show_members(update.step, evaluation)
        digest = self._verified_digest() if self._needs_digest(update.step) else None
        # If every step uses all rows, the next step has the same prompts.
        same_prompts = not self.mixture and len(update.rows) == len(self.train_rows)
        metrics = update.metrics(journal.steps, evaluation)
        line = update.line(
            self.args.noise, metrics, digest, self.mixture, same_prompts=same_prompts
        )
        self.folder.append(line)

    def _evaluation(self, step: int, rows: list[Row], stop: Stop) -> StepEvaluation:
        """Return the evaluator of variants of θ on `rows`; Ctrl-C and SIGTERM stop it early."""

        def tick(evaluation: StepEvaluation) -> None:
            stop.check()
            done = min(evaluation.done, self.args.population_size)
            self.screen.member(step, done, self.model.workers.status())

        return StepEvaluation(
            self.model.workers,
            self.rewards,
            rows,
            self.args,
            self.callbacks.state,
            self._timeline,
            tick,
            first_step=step == 1,
            best_of=self.args.population_size if self.log.shows_completions(step) else 0,
        )

    def _batch(self, journal: Journal) -> list[Row]:
        """The next step's rows: all members get the same prompts."""
        step = journal.last + 1
        if self.mixture:
            history = [before.task_rewards or {} for before in journal.steps]
            indices = self.mixture.batch(self.args, step, history)
        else:
            indices = strategy.batch(self.args, step, len(self.train_rows))
        return [self.train_rows[index] for index in indices]

    def _after(self, journal: Journal) -> None:
        """Evaluate and log the last step, unless that was done before a resume; save when due.

        It is also called before the first step, for step 0 or the step that a resume starts from.
        """
        step = journal.last
        if step not in self.log.lines and (step > 0 or self.args.eval_on_start):
            held_out = None
            if evaluates(self.args, step):
                with self._timeline.span("held-out evaluation"):
                    held_out = self._held_out()
            metrics = journal.steps[-1].notes["metrics"] if step else {}
            self.log.write(step, metrics, held_out)
        if saves(self.args, step) or (step and self.log.stops_early(step)):
            state = trainer_state(self.args, self.log.lines, step)
            with self._timeline.span("save"):
                self.folder.save(step, self.model, state, state["best_global_step"])
            self.callbacks.call("on_save")

    def _held_out(self) -> ThetaEvaluation:
        version = self.model.theta.version
        return evaluate_theta(
            self.model.workers,
            self.rewards,
            self.eval_rows,
            self.args,
            version,
            self.callbacks.state,
            first=version == 0,
        )

    def _finish(self, journal: Journal) -> TrainOutput:
        """Show the result, load the best model if asked, write the card and upload."""
        step = journal.last
        self.log.show_result(step, self.model.loader)
        best = best_step(self.args, self.log.lines, step)
        if self.args.load_best_model_at_end and best is not None and best != step:
            self.model.theta.reset(self.model.checkpoint)
            for _ in journal.replay(self.model.theta, best):
                pass
            self.screen.say(f"θ is that of the best checkpoint, step {best}")
        last = dict(self.log.lines.get(step, {}))  # empty if a callback ended the run at once
        figures = {n: v for n, v in last.items() if n.startswith("eval_") and n != "eval_runtime"}
        with self.folder.writing():
            model = self.model
            write_card(self.folder.path, self.args, model.name, step, figures, model.loader)
        if self.args.push_to_hub:
            self.screen.say(f"pushed to {self.push_to_hub()}")
        last.pop("step", None)
        return TrainOutput(step, last)

    def _check(self) -> None:
        """Check what needs no model: columns, reward functions, combinations of settings."""
        config = self.args
        for rows in filter(None, (self.train_rows, self.eval_rows)):
            self.rewards.check([name for name in rows[0] if name != "prompt"])
            warn_of_columns_not_shown(rows)
        if (config.eval_strategy != "no" or config.eval_on_start) and not self.eval_rows:
            raise DataError(
                "eval_strategy: evaluation needs held-out data; "
                "give an eval_dataset, or eval_strategy no"
            )
        check_trackers(config.report_to)
        if self.mixture:
            self.mixture.check(config)

    def _journal(self) -> Journal:
        """The run's journal, new or continued, with θ at its last step."""
        if self._trained:  # an earlier `train` of this trainer moved θ
            self.model.theta.reset(self.model.checkpoint)
        self._trained = True
        now = header(self.args, self.model, self.rewards.names, self._fingerprint)
        # `train` has refused an existing run unless this is a resume.
        if not exists(self.folder.path):
            self.folder.check_fresh(self.model.checkpoint.folder)
            write_config(self.folder.path, self.args)
            self.folder.metrics.clear()
            return self.folder.begin(now)
        journal = self.folder.reopen()
        check_resumable(journal, as_recorded(now, journal.header, self._data), self.args)
        restore(self.folder, self.model, journal, self.args, self.screen.say)
        return journal

    def _resumes(self, given: bool | None) -> bool:
        resume = self.args.resume_from_checkpoint if given is None else given
        if not isinstance(resume, bool):
            raise ConfigError(
                "resume_from_checkpoint: must be true or false, since a run resumes from its "
                f"journal; it is {resume!r}"
            )
        return resume

    def _needs_digest(self, step: int) -> bool:
        """Whether θ's digest is needed: `step` is saved, evaluated, or may be the last.

        A callback may have asked for the end, or may ask for it when the step is logged.
        """
        may_stop = self.callbacks.listening and step % self.args.logging_steps == 0
        stops = self.callbacks.stopping or may_stop
        return stops or saves(self.args, step) or evaluates(self.args, step)

    def _verified_digest(self) -> str:
        """θ's digest, after checking that every replica has the same."""
        with self._timeline.span("digest"):
            digest = self.model.theta.digest()
            self.model.workers.verify(digest)
        return digest


def _rows(dataset: Any, name: str) -> list[Row]:
    return [] if dataset is None else rows_of(dataset, name)
