"""Many engines on a Ray cluster, or on this machine with nothing to start; any of them may die, hang, or join late.

A thread hands out pieces of members and collects answers while the trainer scores what came before. Only scalars and
text travel: every node has its own θ, the trainer's on its own machine and a keeper's elsewhere (actors.py), and each
applies the same updates. What a lost worker was at is given to another, so θ does not depend on who was lost.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from estune.common.types import Completion, Prompt, Sampling, Variant
from estune.config import ESConfig
from estune.errors import EngineError, InputError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.actors import EngineActor, KeeperActor, Location
from estune.workers.base import Evaluation, Status, Work
from estune.workers.dispatch import Dispatch, Pace, Piece
from estune.workers.model_source import ModelSource

logger = logging.getLogger(__name__)

_TRIES = 3  # times in a row that a worker may fail to start, or a piece be failed by workers
_TICK = 0.5  # seconds between looks at who is late
_LAST_TICK = 0.02  # the same when all is answered and the step waits for nothing else


@dataclass
class _Seat:
    """One place for an engine, and the actor that has it now."""

    number: int
    actor: Any
    state: str = "placing"  # then building, idle, busy
    since: float = 0.0
    place: Location | None = None
    failures: int = 0

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.place}" if self.place else "")


@dataclass
class _Job:
    """One population under way."""

    members: Sequence[Variant]
    prompts: Any  # a reference to them, in Ray's object store
    budget: int
    dispatch: Dispatch
    sampling: Sampling | None = None
    answers: dict[int, dict[int, list[Completion]]] = field(
        default_factory=dict
    )  # member → prompt → its completions
    work: dict[int, list[Work]] = field(default_factory=dict)  # member → who did what for it
    failures: dict[Piece, int] = field(default_factory=dict)
    results: "queue.Queue[Evaluation | BaseException]" = field(default_factory=queue.Queue)
    over: threading.Event = field(default_factory=threading.Event)


class RayWorkers:
    """Evaluates members on all engines that there are.

    Args:
        theta: the trainer's θ, shared, at θ₀.
        source: the base model.
        config: `num_workers`, `ray_address`, `worker_timeout`, and what the engines need.
        prompts: dataset's name → all that will be asked.

    Raises:
        InputError: Ray or an engine cannot be had, or a prompt does not fit.
        EngineError: no worker could be started.
    """

    def __init__(
        self,
        theta: Theta,
        source: ModelSource,
        config: ESConfig,
        prompts: Mapping[str, Sequence[Prompt]],
    ) -> None:
        self._theta, self._source, self._config = theta, source, config
        self._home = cluster.connect(config)
        self._keepers: dict[str, Any] = {}
        self._elsewhere = theta.version  # that of the keepers' θ
        self._seats: dict[int, _Seat] = {}
        self._waiting: dict[
            Any, tuple[_Seat, Any, Piece | None, _Job | None]
        ] = {}  # Ray's reference → who, which actor, at what
        self._seated = 0
        self._job: _Job | None = None
        self._pace = Pace()
        self._lengths: Mapping[str, Sequence[Prompt]] | None = prompts
        self._grow()
        while not any(seat.state == "idle" for seat in self._seats.values()):
            self._turn(None)

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        self._level()
        dispatch = Dispatch(len(members), len(prompts), self._pace)
        job = self._job = _Job(
            members, ray.put(list(prompts)), max_completion_length, dispatch, sampling
        )
        thread = threading.Thread(target=self._run, args=[job], name="estune-ray", daemon=True)
        thread.start()
        try:
            left = len(members)
            while left:
                result = _next(job.results)
                if isinstance(result, BaseException):
                    raise result
                left -= result is not None
                yield result
        finally:
            job.over.set()
            thread.join()

    def update(
        self,
        seeds: list[int],
        coefficients: list[float],
        *,
        noise: str,
        version: int,
        decay: float = 0.0,
    ) -> None:
        self._level()
        answers = {
            node: keeper.update.remote(seeds, coefficients, noise, version, decay)
            for node, keeper in self._keepers.items()
        }
        self._theta.update(seeds, coefficients, noise=noise, version=version, decay=decay)
        for node, answer in answers.items():
            try:
                ray.get(answer, timeout=self._config.worker_timeout)
            except RayError as error:  # it is rebuilt when it is needed again
                self._keeper_lost(node, error)
        self._elsewhere = self._theta.version

    def verify(self, digest: str) -> None:
        for node, keeper in list(self._keepers.items()):
            try:
                if ray.get(keeper.digest.remote(), timeout=self._config.worker_timeout) != digest:
                    logger.warning(
                        "θ on node %s differs from the trainer's; it is rebuilt", node[:8]
                    )
                    self._fill(keeper)
            except RayError as error:
                self._keeper_lost(node, error)

    def serve(self) -> None:
        """The trainer's process always leads."""

    def release(self) -> None:
        """The actors live as long as this object."""

    def status(self) -> Status:
        return Status(
            len(self.processes()),
            len(self._seats),
            self._job.dispatch.in_flight if self._job else 0,
        )

    def processes(self) -> list[Location]:
        """Where the engines are that are alive."""
        return [
            seat.place
            for seat in self._seats.values()
            if seat.place and seat.state in ("idle", "busy")
        ]

    def _run(self, job: _Job) -> None:
        """The thread of one population; it sees to workers until the last answer was scored."""
        try:
            self._grow()
            while not job.over.is_set():
                self._turn(job)
        except BaseException as error:
            job.results.put(error)

    def _turn(self, job: _Job | None) -> None:
        """Hand out what can be, then wait a little for whatever comes."""
        alive = len(self.processes())
        for seat in list(self._seats.values()):
            if job and seat.state == "idle":
                self._hand_out(seat, alive, job)
        tick = _LAST_TICK if job and job.dispatch.finished else _TICK
        if self._waiting:
            for answer in ray.wait(list(self._waiting), num_returns=1, timeout=tick)[0]:
                self._receive(answer, job)
        else:
            time.sleep(tick)
        now = time.monotonic()
        for seat in [seat for seat in self._seats.values() if seat.state in ("building", "busy")]:
            if now - seat.since > self._config.worker_timeout:
                self._lost(seat, f"did not answer within {self._config.worker_timeout:.0f} s", job)
        if not self._seats:
            raise EngineError(
                "no worker is left; what was done is saved: see to them, then add --resume_from_checkpoint true"
            )

    def _hand_out(self, seat: _Seat, alive: int, job: _Job) -> None:
        piece = job.dispatch.take(seat.number, alive, time.monotonic())
        if piece is not None:
            member = job.members[piece.member]
            answer = seat.actor.evaluate_one.remote(
                member, job.prompts, piece.start, piece.stop, job.budget, job.sampling
            )
            self._expect(seat, "busy", answer, piece, job)

    def _expect(
        self,
        seat: _Seat,
        state: str,
        answer: Any,
        piece: Piece | None = None,
        job: _Job | None = None,
    ) -> None:
        seat.state, seat.since = state, time.monotonic()
        self._waiting[answer] = seat, seat.actor, piece, job

    def _receive(self, answer: Any, job: _Job | None) -> None:
        seat, actor, piece, asked_by = self._waiting.pop(answer)
        if actor is not seat.actor:
            return  # from one that was replaced meanwhile
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            if (
                piece and asked_by is not job
            ):  # it was late, another answered, and θ moved on under it: no fault of its own
                seat.state = "idle"
                return
            return self._failed(seat, error.cause, piece, job if piece else None)
        except RayError as error:
            return self._lost(seat, f"was lost ({_reason(error)})", job)
        if seat.state == "placing":
            self._build(seat, result)
        elif seat.state == "building":
            self._seat_ready(seat)
        else:
            seat.state, seat.failures = "idle", 0
            if piece and job and asked_by is job and job.dispatch.done(piece, time.monotonic()):
                completions, *seconds = result
                self._collect(job, piece, completions, Work(seat.number, *seconds))

    def _collect(self, job: _Job, piece: Piece, completions: list[Completion], work: Work) -> None:
        answers = job.answers.setdefault(piece.member, {})
        each = len(completions) // piece.size
        answers.update(
            {piece.start + i: completions[i * each : (i + 1) * each] for i in range(piece.size)}
        )
        job.work.setdefault(piece.member, []).append(work)
        if len(answers) == job.dispatch.prompts:
            del job.answers[piece.member]
            job.results.put(
                Evaluation(
                    piece.member,
                    [row for i in sorted(answers) for row in answers[i]],
                    tuple(job.work[piece.member]),
                )
            )

    def _build(self, seat: _Seat, place: Location) -> None:
        seat.place = place
        try:
            address = (
                self._theta.address
                if place.node == self._home
                else self._keeper_address(place.node)
            )
        except RayError as error:
            return self._lost(seat, f"has no θ on its node ({_reason(error)})", None)
        self._expect(seat, "building", seat.actor.build.remote(address))

    def _seat_ready(self, seat: _Seat) -> None:
        if self._lengths is not None:
            try:
                ray.get(seat.actor.check_lengths.remote(self._lengths))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                return self._lost(seat, f"was lost ({_reason(error)})", None)
            self._lengths = None
        seat.state, seat.failures = "idle", 0
        logger.info("%s is ready", seat)

    def _failed(self, seat: _Seat, cause: Exception, piece: Piece | None, job: _Job | None) -> None:
        """The actor lives, but what it was asked raised `cause`."""
        if isinstance(cause, InputError) and (job or self._lengths is not None):
            raise cause
        if piece and job:
            job.failures[piece] = job.failures.get(piece, 0) + 1
            if job.failures[piece] == _TRIES:
                raise EngineError(
                    f"{_TRIES} workers failed at the same prompts of a member ({_reason(cause)})"
                )
        self._lost(seat, f"failed ({_reason(cause)})", job)

    def _lost(self, seat: _Seat, why: str, job: _Job | None) -> None:
        """Give what it was at to others, and start it anew, unless it never gets far."""
        if job:
            job.dispatch.lost(seat.number)
        ray.kill(seat.actor)
        seat.actor = None  # so that nothing that still comes from it is heard
        seat.failures += 1
        if seat.failures >= _TRIES:
            del self._seats[seat.number]
            logger.warning(
                "%s %s; it is given up, and the run goes on with %d", seat, why, len(self._seats)
            )
            if not self._seats:
                raise EngineError(
                    f"no worker is left: the last {why}; see to it, then add --resume_from_checkpoint true"
                )
            return
        logger.warning("%s %s; it is started anew", seat, why)
        self._start(seat)

    def _start(self, seat: _Seat) -> None:
        actor = ray.remote(EngineActor).options(**cluster.resources(self._config))
        seat.actor = actor.remote(self._source, self._config, cluster.threads(self._config))
        seat.place = None
        self._expect(seat, "placing", seat.actor.place.remote())

    def _grow(self) -> None:
        """As many seats as were asked for, or as the cluster has room for now."""
        wanted = self._config.num_workers or cluster.room(self._config)
        while self._seated < wanted:
            self._seated += 1
            seat = _Seat(self._seated, None)
            self._seats[seat.number] = seat
            self._start(seat)

    def _keeper_address(self, node: str) -> Any:
        """θ of `node`, made there and brought to the trainer's version when it is not there yet. Raises RayError."""
        if node in self._keepers:
            try:
                return ray.get(
                    self._keepers[node].address.remote(), timeout=self._config.worker_timeout
                )
            except RayError:
                self._forget(node)
        keeper = (
            ray.remote(KeeperActor)
            .options(num_cpus=0, **cluster.only_on(node))
            .remote(self._source, self._config)
        )
        address = ray.get(keeper.address.remote(), timeout=self._config.worker_timeout)
        self._fill(keeper)
        self._keepers[node] = keeper
        return address

    def _fill(self, keeper: Any) -> None:
        """Bring a keeper's θ to the trainer's, unless it is that already, and make sure of it."""
        digest = self._theta.digest()
        if (
            self._theta.version == ray.get(keeper.version.remote())
            and ray.get(keeper.digest.remote()) == digest
        ):
            return
        for name, start, part in self._theta.parts():
            ray.get(keeper.put.remote(name, start, part.numpy()))
        ray.get(keeper.became.remote(self._theta.version))
        if ray.get(keeper.digest.remote()) != digest:
            raise EngineError(
                "θ arrived damaged on a node of the cluster; its memory or the network is at fault"
            )

    def _level(self) -> None:
        """Bring the keepers' θ to the trainer's, which moves without them when a run is resumed or its best step is loaded."""
        if self._elsewhere == self._theta.version:
            return
        for node, keeper in list(self._keepers.items()):
            try:
                self._fill(keeper)
            except RayError as error:
                self._keeper_lost(node, error)
        self._elsewhere = self._theta.version

    def _keeper_lost(self, node: str, error: RayError) -> None:
        logger.warning("the keeper of θ on node %s was lost (%s)", node[:8], _reason(error))
        self._forget(node)

    def _forget(self, node: str) -> None:
        """A keeper that is gone takes its engines along: they would read a θ that nobody updates."""
        ray.kill(self._keepers.pop(node))
        for seat in self._seats.values():
            if seat.actor and seat.place and seat.place.node == node:
                ray.kill(seat.actor)


def _next(results: "queue.Queue[Evaluation | BaseException]") -> Evaluation | BaseException | None:
    """The next result, or None when there is none for a while."""
    try:
        return results.get(timeout=_TICK)
    except queue.Empty:
        return None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__
