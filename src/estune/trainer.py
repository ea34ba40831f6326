"""The loop: ask for seeds, evaluate the members, tell their fitness, update θ, write it down.

    trainer = ESTrainer(model="…", reward_funcs=short, args=ESConfig(output_dir="out"), train_dataset=rows)
    trainer.train()

The interface is that of TRL's trainers. What an engine, a tracker or a reward does is elsewhere.
"""

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from estune import strategy
from estune.common.resources import check_disk
from estune.common.types import Variant
from estune.config import ESConfig
from estune.errors import ConfigError, DataError
from estune.monitor.callbacks import Callbacks
from estune.monitor.console import Screen
from estune.monitor.held_out import HeldOut, evaluate
from estune.monitor.metrics import (
    as_json,
    completion_metrics,
    failure_metrics,
    fitness_metrics,
    logged_metrics,
    reward_metrics,
)
from estune.monitor.timeline import Timeline
from estune.monitor.trackers import Trackers, check_trackers
from estune.rewards.scoring import RewardFunctions
from estune.run.data_fingerprint import digest
from estune.run.distance import distance, travelled
from estune.run.folder import RunFolder
from estune.run.milestones import best_metric, best_step, evaluates, plateaued, saves, trainer_state
from estune.run.mixture import Mixture
from estune.run.model import Model
from estune.run.publish import push, write_card, write_config
from estune.run.resume import as_recorded, check_resumable, header, restore
from estune.run.stopping import Stop, graceful
from estune.strategy import schedules, step_size
from estune.strategy.population import Mishap, Population, Scored
from estune.strategy.search import Found, search
from estune.strategy.step_size import Plan
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of, warn_of_columns_not_shown
from estune.theta.journal import Journal, Step, exists

_TICK = (
    0.1  # seconds between looks at whether the run was asked to stop, while rewards are waited for
)


@dataclass(frozen=True)
class TrainOutput:
    """What `train` returns: the number of updates in θ, and the last step's metrics."""

    global_step: int
    metrics: dict[str, Any]


class ESTrainer:
    """Fine-tunes all parameters of a causal LM by evolution strategies.

    Args:
        model: hub id, folder or .gguf file, or a transformers model, which is first written to `output_dir`.
        reward_funcs: one or several callables, built-in names or dotted paths, called as in TRL.
        args: the settings; default `ESConfig()`.
        train_dataset: a `datasets.Dataset` or list of mappings with the column `prompt` (text or messages), or a `Mixture`.
        eval_dataset: the same, held out.
        processing_class: a tokenizer to use instead of the model's own.
        callbacks: transformers `TrainerCallback`s; their `args` is the `ESConfig`.

    Raises:
        InputError: anything in the input that cannot work, found before a model is loaded where possible.
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
        self.train_rows = (
            rows_of(train_dataset, "train_dataset") if train_dataset is not None else []
        )
        self.eval_rows = rows_of(eval_dataset, "eval_dataset") if eval_dataset is not None else []
        self.mixture = train_dataset if isinstance(train_dataset, Mixture) else None
        self._check()
        self._data = [*self.train_rows, *(self.mixture.settings if self.mixture else [])]
        self._fingerprint = digest(self._data)
        datasets = {"train_dataset": self.train_rows, "eval_dataset": self.eval_rows}
        prompts = {name: [row["prompt"] for row in rows] for name, rows in datasets.items()}
        self.model = Model(model, self.args, processing_class, prompts)
        self.folder = RunFolder(self.args)
        self.screen = Screen(self.args)
        self.callbacks = Callbacks(self.args, callbacks or [])
        self._begun = False

    def train(self, resume_from_checkpoint: bool | None = None) -> TrainOutput:
        """Run to `max_steps` updates, from the start or, when resuming, from the last whole step in the journal.

        Raises:
            InputError: the folder holds a run and this is no resume, or the run there is another one; a reward failed.
            KeyboardInterrupt, SystemExit: on Ctrl-C or SIGTERM, after a clean stop; the run can be resumed.
        """
        if not self.train_rows:
            raise DataError("train_dataset: give one; it is needed to train")
        resume = (
            self.args.resume_from_checkpoint
            if resume_from_checkpoint is None
            else resume_from_checkpoint
        )
        if not isinstance(resume, bool):
            raise ConfigError(
                f"resume_from_checkpoint: must be true or false, since a run resumes from its journal; it is {resume!r}"
            )
        if not self.model.leads:
            self.model.workers.serve()
            return TrainOutput(self.model.theta.version, {})
        check_disk(
            self.folder.path, self.folder.needs(self.model), "the checkpoints and the snapshot of θ"
        )
        with self.folder.locked():
            if not resume:
                self.folder.check_fresh(self.model.checkpoint.folder)
            self.screen.say(self.model.describe())
            if self.model.placement.why:
                self.screen.say(self.model.placement.why)
            workers = self.model.workers  # built while θ is the base model's, which it compares
            trackers = Trackers(self.args)
            try:
                trackers.start()
                return self._train(self._journal(), trackers)
            finally:
                self.screen.stop()
                self.rewards.close()
                trackers.close()
                workers.release()

    def evaluate(self) -> dict[str, Any]:
        """Score θ as it is now on the held-out data; the metrics' names begin with eval_.

        Raises:
            DataError: there is no eval_dataset.
        """
        return self.held_out().metrics

    def held_out(self) -> HeldOut:
        """`evaluate` with what was answered: the metrics, and one record a held-out row.

        Of processes that were launched together only the first gets them, the others nothing.
        """
        if not self.eval_rows:
            raise DataError("eval_dataset: give one; it is needed to evaluate")
        workers = self.model.workers
        if not self.model.leads:
            workers.serve()
            return HeldOut({}, [])
        try:
            return self._held_out()
        finally:
            self.rewards.close()
            workers.release()

    def _held_out(self) -> HeldOut:
        model, version = self.model, self.model.theta.version
        return evaluate(
            model.workers,
            self.rewards,
            self.eval_rows,
            self.args,
            version,
            self.callbacks.state,
            first=version == 0,
        )

    def save_model(self, output_dir: str | None = None) -> None:
        """Write θ as it is now as a checkpoint that transformers and vLLM load; default `output_dir/final`."""
        if self.model.leads:
            with nullcontext() if output_dir else self.folder.writing():
                self.model.write(
                    self.folder.model_folder(output_dir), self.folder.identity(self.model)
                )

    def push_to_hub(self, commit_message: str = "End of training") -> str:
        """Upload θ as it is now, with the model card, to `hub_model_id`; returns the commit's address."""
        if not self.model.leads:
            return ""
        self.save_model()
        return push(self.folder.path, self.args, commit_message)

    def _check(self) -> None:
        """What needs no model: columns, reward signatures, settings that need one another."""
        config = self.args
        for rows in filter(None, (self.train_rows, self.eval_rows)):
            self.rewards.check([name for name in rows[0] if name != "prompt"])
            warn_of_columns_not_shown(rows)
        if (config.eval_strategy != "no" or config.eval_on_start) and not self.eval_rows:
            raise DataError(
                "eval_strategy: evaluation needs held-out data; give an eval_dataset, or eval_strategy no"
            )
        check_trackers(config.report_to)
        if self.mixture:
            self.mixture.check(config)

    def _journal(self) -> Journal:
        """The run's journal, new or continued, with θ at its last step."""
        if (
            self._begun
        ):  # an earlier `train` of this trainer, which may have ended anywhere, moved θ
            self.model.theta.reset(self.model.checkpoint)
        self._begun = True
        now = header(self.args, self.model, self.rewards.names, self._fingerprint)
        if not exists(self.folder.path):
            self.folder.check_fresh(self.model.checkpoint.folder)
            write_config(self.folder.path, self.args)
            self.folder.metrics.clear()
            return self.folder.begin(now)
        journal = self.folder.reopen()
        check_resumable(journal, as_recorded(now, journal.header, self._data), self.args)
        restore(self.folder, self.model, journal, self.args, self.screen.say)
        return journal

    def _train(self, journal: Journal, trackers: Trackers) -> TrainOutput:
        self._logged = {record["step"]: record for record in self.folder.metrics.read()}
        self.callbacks.call("on_train_begin")
        begun = journal.last
        trace = self.folder.path / f"profile-{begun}.json" if self.args.profile else None
        with graceful() as stop, closing(Timeline(trace)) as self._timeline:
            self._after(journal, trackers)
            self.screen.start(journal.last)
            while journal.last < self.args.max_steps and not self._stopping(journal.last):
                stop.check()
                self.folder.append(self._step(journal, stop))
                self._after(journal, trackers)
            self.screen.stop()
            if journal.last > begun:
                self.screen.say(self._timeline.summary())
        self.callbacks.call("on_train_end")
        return self._finish(journal)

    def _step(self, journal: Journal, stop: Stop) -> Step:
        """One update: every member answers the batch, θ moves; the record of it is returned, not yet written."""
        started = time.perf_counter()
        config, step = self.args, journal.last + 1
        self.callbacks.state.global_step = step - 1
        self.callbacks.call("on_step_begin")
        plan = step_size.plan(config, step, journal.control, self.model.theta.root_mean_square)
        seeds = strategy.ask(config, step)
        rows = [self.train_rows[i] for i in self._batch(journal)]
        best_of = config.population_size if self._shows(step) else 0
        population = Population(
            self.rewards, rows, self.callbacks.state, self._timeline, best_of=best_of
        )
        evaluate = partial(self._evaluate, step, population, [row["prompt"] for row in rows], stop)
        found = search(config, step, plan, seeds, step_size.known_center(journal.control), evaluate)
        self._tell_of(step, population, found)
        coefficients = found.coefficients
        evaluating = time.perf_counter() - started
        decay = schedules.decay(config, step) if coefficients else 0.0
        updating = time.perf_counter()
        with self._timeline.span("update"):
            self.model.workers.update(
                seeds, coefficients, noise=config.noise, version=step - 1, decay=decay
            )
        update_seconds = time.perf_counter() - updating
        self.callbacks.state.global_step = step
        self.callbacks.call("on_step_end")
        logged = step % self.args.logging_steps == 0
        last = self.callbacks.stopping or (logged and self.callbacks.listening)  # or may become it
        digest = (
            self._vouch() if last or saves(self.args, step) or evaluates(self.args, step) else None
        )
        metrics = self._metrics(journal, plan, found, decay, evaluating)
        metrics |= {"es/update_seconds": update_seconds, "step_time": time.perf_counter() - started}
        rewards = [None if np.isnan(value) else float(value) for value in found.fitness]
        task_rewards = self.mixture.earned(rows, found.totals) if self.mixture else None
        same = not self.mixture and len(rows) == len(self.train_rows)  # prompts at the next step
        learned = found.record(same_prompts=same)
        notes = {"metrics": as_json(metrics)}
        return Step(
            step,
            seeds,
            coefficients,
            rewards,
            plan.sigma,
            config.noise,
            decay or None,
            task_rewards,
            digest,
            learned,
            notes,
        )

    def _batch(self, journal: Journal) -> list[int]:
        """The rows that the next step asks."""
        step = journal.last + 1
        if self.mixture:
            return self.mixture.batch(
                self.args, step, [before.task_rewards or {} for before in journal.steps]
            )
        return strategy.batch(self.args, step, len(self.train_rows))

    def _stopping(self, step: int) -> bool:
        """Whether the run ends after `step`, though more were wanted."""
        return self.callbacks.stopping or plateaued(self.args, self._logged, step)

    def _evaluate(
        self,
        step: int,
        population: Population,
        prompts: list[Any],
        stop: Stop,
        members: Sequence[Variant],
    ) -> list[Scored]:
        """Evaluate and score `members`, the one while the other; what is kept of all that `population` has by then."""
        before, workers = population.done, self.model.workers
        with self._timeline.span("wait"):
            for evaluation in workers.evaluate(
                members, prompts, max_completion_length=self.args.max_completion_length
            ):
                stop.check()
                if evaluation is not None:
                    self._timeline.work(evaluation.work, workers.status().requested)
                    number = before + evaluation.index
                    population.add(
                        replace(evaluation, index=number), first=step == 1 and number == 0
                    )
                    self._show_progress(step, population)
        with self._timeline.span("score"):
            while population.under_way:
                stop.check()
                population.wait(_TICK)
                self._show_progress(step, population)
        stop.check()  # a signal may have come while the last scores did
        return population.settled()

    def _tell_of(self, step: int, population: Population, found: Found) -> None:
        """Show what there is to say of a step's members."""
        if self._shows(step):
            self.screen.samples(f"step {step}, best member", population.best)
        if broken := sum(not member.finite for member in found.members):
            self.screen.say(
                f"step {step}: {broken} members computed NaN or infinity and are left out; try a smaller sigma"
            )
        if population.mishap:
            self._report(step, [*found.members, *found.others], population.mishap)

    def _show_progress(self, step: int, population: Population) -> None:
        self.screen.member(
            step, min(population.done, self.args.population_size), self.model.workers.status()
        )

    def _report(self, step: int, members: list[Scored], mishap: Mishap) -> None:
        """A line about rewards that were lost in `step`; the run's first in full in a file."""
        lost = failure_metrics([member.scores for member in members])["es/reward_errors"]
        path = self.folder.keep_reward_error(f"step {step}: {mishap}\n")
        self.screen.say(
            f"step {step}: {lost} rewards were lost; first: {mishap.function} {mishap.failure.reason} (see {path})"
        )

    def _shows(self, step: int) -> bool:
        """Whether the answers of the step's best member are shown."""
        return self.args.log_completions and step % self.args.logging_steps == 0

    def _vouch(self) -> str:
        """θ's digest, which every replica has."""
        with self._timeline.span("digest"):
            digest = self.model.theta.digest()
            self.model.workers.verify(digest)
        return digest

    def _metrics(
        self, journal: Journal, plan: Plan, found: Found, decay: float, evaluating: float
    ) -> dict[str, Any]:
        members, everyone = found.members, [*found.members, *found.others]
        new = int(sum(one.tally.lengths.sum() for one in everyone))
        before = journal.steps[-1].notes["metrics"] if journal.steps else {}
        own = (
            fitness_metrics(np.array([member.scores.fitness for member in members]))
            | reward_metrics([member.scores for member in members])
            | failure_metrics([one.scores for one in everyone])
            | {"es/members_not_finite": sum(not member.finite for member in members)}
            | completion_metrics([member.tally for member in members])
            | {
                "learning_rate": plan.alpha,
                "es/sigma": plan.sigma,
                "num_tokens": before.get("num_tokens", 0) + new,
            }
            | {"es/distance": distance(travelled(journal.steps), found.coefficients, decay)}
            | found.metrics
            | {"es/generate_seconds": sum(one.generate_seconds for one in everyone)}
            | {"es/load_seconds": sum(one.load_seconds for one in everyone)}
            | {"es/tokens_per_second": new / max(evaluating, 1e-9)}  # of all workers together
        )
        return (
            own | logged_metrics([member.scores for member in members]) | own
        )  # the run's own come first, and win

    def _after(self, journal: Journal, trackers: Trackers) -> None:
        """What follows the last whole step: evaluation, metrics, checkpoint. What was done before a kill is not repeated."""
        step = journal.last
        if step not in self._logged and (step > 0 or self.args.eval_on_start):
            self._log(step, journal.steps[-1].notes["metrics"] if step else {}, trackers)
        if saves(self.args, step) or (step and self._stopping(step)):
            state = trainer_state(self.args, self._logged, step)
            with self._timeline.span("save"):
                self.folder.save(step, self.model, state, state["best_global_step"])
            self.callbacks.call("on_save")

    def _log(self, step: int, metrics: dict[str, Any], trackers: Trackers) -> None:
        """Evaluate if that is due, then write the step's line of metrics."""
        if metrics:
            self.screen.step(step, metrics)
        if evaluates(self.args, step):
            with self._timeline.span("held-out evaluation"):
                held = self._held_out()
            self.folder.write_completions(step, held.records)
            metrics = metrics | held.metrics
            self.screen.evaluation(step, held.metrics)
            if step < self.args.max_steps:
                self.screen.samples(f"held out, step {step}", held.records)
        self._logged[step] = {"step": step} | metrics | {"step": step}
        self.folder.log(self._logged[step])
        if step % self.args.logging_steps == 0 or evaluates(self.args, step):
            trackers.log(
                {name: value for name, value in metrics.items() if value is not None}, step
            )
            self.callbacks.state.log_history.append(self._logged[step])
            self.callbacks.call("on_log", logs=metrics)
        if evaluates(self.args, step):
            self.callbacks.call("on_evaluate", metrics=metrics)
            self._remember_best(step)

    def _remember_best(self, step: int) -> None:
        """Let callbacks see the best evaluation so far, where transformers' own keep it; only after on_evaluate, as there."""
        if self.args.metric_for_best_model:
            name, sign = best_metric(self.args), 1 if self.args.greater_is_better else -1
            known = [
                record[name]
                for number, record in self._logged.items()
                if number <= step and record.get(name) is not None
            ]
            self.callbacks.state.best_metric = max(
                known, key=lambda value: sign * value, default=None
            )

    def _finish(self, journal: Journal) -> TrainOutput:
        step = journal.last
        self._show_result(step)
        best = best_step(self.args, self._logged, step)
        if self.args.load_best_model_at_end and best is not None and best != step:
            self.model.theta.reset(self.model.checkpoint)
            list(journal.replay(self.model.theta, best))
            self.screen.say(f"θ is that of the best checkpoint, step {best}")
        last = self._logged.get(
            step, {}
        )  # nothing when a callback ended the training before it began
        figures = {
            name: value
            for name, value in last.items()
            if name.startswith("eval_") and name != "eval_runtime"
        }
        with self.folder.writing():
            write_card(self.folder.path, self.args, self.model.name, step, figures)
        if self.args.push_to_hub:
            self.screen.say(f"pushed to {self.push_to_hub()}")
        return TrainOutput(step, {name: value for name, value in last.items() if name != "step"})

    def _show_result(self, step: int) -> None:
        """The held-out answers and figures, before beside after where both were evaluated."""
        before, after = self.folder.completions(0), self.folder.completions(step)
        if before and after and step:
            self.screen.before_after(before, after, self._logged.get(0, {}), self._logged[step])
        elif after:
            self.screen.samples(f"held out, step {step}", after)
        if step:
            self.screen.say(
                f"done: {self.folder.checkpoint(step)} loads with AutoModelForCausalLM.from_pretrained"
            )
