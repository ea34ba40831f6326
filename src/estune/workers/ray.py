"""Many engines on a Ray cluster, or on this machine alone; any of them may die, hang or join late.

A thread hands out pieces of members and collects completions while the trainer scores what came
before. Only numbers and text travel: each node has its own θ (keepers.py) and applies the same
updates. What a lost worker was doing is given to another, so θ does not depend on who was lost.
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

from estune.common.guard import reason
from estune.common.types import Completion, Prompt, Sampling, ThetaUpdate, Variant
from estune.config import ESConfig
from estune.errors import EngineError, InputError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.actors import EngineActor, Location
from estune.workers.base import Evaluation, Status, Work
from estune.workers.dispatch import Dispatch, Pace, Piece
from estune.workers.keepers import Keepers
from estune.workers.model_source import ModelSource

logger = logging.getLogger(__name__)

_TRIES = 3  # failures in a row that end a worker; failures of one piece that end the run
_TICK = 0.5  # seconds between checks for late workers
_LAST_TICK = 0.02  # the same when all pieces are done, so that the step ends at once


@dataclass
class _Slot:
    """A numbered worker: the actor that serves as it now, and what that actor is doing."""

    number: int
    actor: Any = None
    state: str = "locating"  # then building, idle, busy
    since: float = 0.0
    location: Location | None = None
    failures: int = 0

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.location}" if self.location else "")


@dataclass
class _Request:
    """One call of `evaluate` in progress."""

    members: Sequence[Variant]
    prompts: Any  # a reference to them, in Ray's object store
    budget: int  # tokens per completion
    dispatch: Dispatch
    sampling: Sampling | None
    completions: dict[int, dict[int, list[Completion]]] = field(default_factory=dict)
    work: dict[int, list[Work]] = field(default_factory=dict)  # member → who did what for it
    failures: dict[Piece, int] = field(default_factory=dict)
    results: "queue.Queue[Evaluation | BaseException]" = field(default_factory=queue.Queue)
    over: threading.Event = field(default_factory=threading.Event)

    def collect(self, piece: Piece, completions: list[Completion], work: Work) -> None:
        """Keep a piece's completions, and put the member into `results` once it is whole."""
        by_prompt = self.completions.setdefault(piece.member, {})
        each = len(completions) // piece.size
        for i in range(piece.size):
            by_prompt[piece.start + i] = completions[i * each : (i + 1) * each]
        self.work.setdefault(piece.member, []).append(work)
        if len(by_prompt) == self.dispatch.prompts:
            whole = [one for prompt in sorted(by_prompt) for one in by_prompt[prompt]]
            del self.completions[piece.member]
            self.results.put(Evaluation(piece.member, whole, tuple(self.work[piece.member])))

    def next_result(self) -> Evaluation | BaseException | None:
        """Return the next result, or None if there is none for a while."""
        try:
            return self.results.get(timeout=_TICK)
        except queue.Empty:
            return None


@dataclass(frozen=True)
class _Call:
    """What an actor is doing: building its engine, or a piece of a request."""

    slot: _Slot
    actor: Any
    piece: Piece | None = None
    request: _Request | None = None


class RayWorkers:
    """Evaluates members on all engines of a cluster.

    Args:
        theta: the trainer's θ, shared, at θ₀.
        source: the base model.
        config: `num_workers`, `ray_address`, `worker_timeout`, and what the engines need.
        prompts: all prompts of the run, by dataset.

    Raises:
        InputError: Ray or an engine cannot start, or a prompt does not fit.
        EngineError: no worker could be started.
    """

    def __init__(
        self,
        theta: Theta,
        source: ModelSource,
        config: ESConfig,
        prompts: Mapping[str, Sequence[Prompt]],
    ) -> None:
        self._theta = theta
        self._source = source
        self._config = config
        self._home = cluster.connect(config)
        self.keepers = Keepers(theta, source, config, self._stop_engines)
        self._slots: dict[int, _Slot] = {}
        self._started = 0  # slots, with those that were given up
        self._calls: dict[Any, _Call] = {}  # by Ray's reference
        self._request: _Request | None = None
        self._pace = Pace()
        self._unchecked: Mapping[str, Sequence[Prompt]] | None = prompts  # by any engine
        self._grow()
        while not any(slot.state == "idle" for slot in self._slots.values()):
            self._turn(None)

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        self.keepers.catch_up()
        dispatch = Dispatch(len(members), len(prompts), self._pace)
        shared = ray.put(list(prompts))
        request = _Request(members, shared, max_completion_length, dispatch, sampling)
        self._request = request
        thread = threading.Thread(target=self._run, args=[request], name="estune-ray", daemon=True)
        thread.start()
        try:
            left = len(members)
            while left:
                result = request.next_result()
                if isinstance(result, BaseException):
                    raise result
                left -= result is not None
                yield result
        finally:
            request.over.set()
            thread.join()

    def update(self, update: ThetaUpdate) -> None:
        self.keepers.update(update)

    def verify(self, digest: str) -> None:
        self.keepers.verify(digest)

    def serve(self) -> None:
        """Do nothing: the trainer's process always leads."""

    def release(self) -> None:
        """Do nothing: the actors live as long as this object."""

    def status(self) -> Status:
        in_flight = self._request.dispatch.in_flight if self._request else 0
        return Status(len(self.locations()), len(self._slots), in_flight)

    def locations(self) -> list[Location]:
        """Return where the live engines are."""
        ready = [slot for slot in self._slots.values() if slot.state in ("idle", "busy")]
        return [slot.location for slot in ready if slot.location]

    def _run(self, request: _Request) -> None:
        """Drive the workers until `evaluate` has all results; runs in a thread."""
        try:
            self._grow()
            while not request.over.is_set():
                self._turn(request)
        except BaseException as error:
            request.results.put(error)

    def _turn(self, request: _Request | None) -> None:
        """Hand out what can be, wait a little for results, and replace workers that hang."""
        if request:
            alive = len(self.locations())
            for slot in [slot for slot in self._slots.values() if slot.state == "idle"]:
                self._hand_out(slot, alive, request)
        self._receive_next(request)
        timeout = self._config.worker_timeout
        late = time.monotonic() - timeout
        for slot in list(self._slots.values()):
            if slot.state in ("building", "busy") and slot.since < late:
                self._lost(slot, f"did not answer within {timeout:.0f} s", request)
        if not self._slots:
            raise EngineError(
                "no worker is left; finished steps are saved: fix the workers, then add "
                "--resume_from_checkpoint true"
            )

    def _hand_out(self, slot: _Slot, alive: int, request: _Request) -> None:
        piece = request.dispatch.take(slot.number, alive, time.monotonic())
        if piece is None:
            return
        answer = slot.actor.evaluate_one.remote(
            request.members[piece.member],
            request.prompts,
            piece.start,
            piece.stop,
            request.budget,
            request.sampling,
        )
        self._expect(answer, "busy", _Call(slot, slot.actor, piece, request))

    def _expect(self, answer: Any, state: str, call: _Call) -> None:
        call.slot.state, call.slot.since = state, time.monotonic()
        self._calls[answer] = call

    def _receive_next(self, request: _Request | None) -> None:
        """Wait for at most a tick, and process one result."""
        tick = _LAST_TICK if request and request.dispatch.finished else _TICK
        if not self._calls:
            time.sleep(tick)
            return
        for answer in ray.wait(list(self._calls), num_returns=1, timeout=tick)[0]:
            call = self._calls.pop(answer)
            if call.actor is call.slot.actor:  # else the actor was replaced meanwhile
                self._receive(call, answer, request)

    def _receive(self, call: _Call, answer: Any, request: _Request | None) -> None:
        slot = call.slot
        outdated = call.request is not request  # another worker did its piece in an earlier step
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            if call.piece and outdated:  # θ changed while it was being read: not a fault
                slot.state = "idle"
            else:
                self._failed(call, error.cause)
            return
        except RayError as error:
            return self._lost(slot, f"was lost ({reason(error)})", request)
        if slot.state == "locating":
            return self._build(slot, result)
        if slot.state == "building":
            return self._check_lengths(slot)
        slot.state, slot.failures = "idle", 0
        if outdated or not call.piece or not request:
            return
        if request.dispatch.done(call.piece, time.monotonic()):
            completions, *work = result
            request.collect(call.piece, completions, Work(slot.number, *work))

    def _build(self, slot: _Slot, location: Location) -> None:
        slot.location = location
        node = location.node
        try:
            address = self._theta.address if node == self._home else self.keepers.address(node)
        except RayError as error:
            return self._lost(slot, f"has no θ on its node ({reason(error)})", None)
        self._expect(slot.actor.build.remote(address), "building", _Call(slot, slot.actor))

    def _check_lengths(self, slot: _Slot) -> None:
        """Let the first engine that is ready check all prompts; then the slot is idle."""
        if self._unchecked is not None:
            try:
                ray.get(slot.actor.check_lengths.remote(self._unchecked))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                return self._lost(slot, f"was lost ({reason(error)})", None)
            self._unchecked = None
        slot.state, slot.failures = "idle", 0
        logger.info("%s is ready", slot)

    def _failed(self, call: _Call, cause: Exception) -> None:
        """Restart the slot; raise `cause` instead if another worker would fail too."""
        request, piece = call.request, call.piece
        if isinstance(cause, InputError) and (request or self._unchecked is not None):
            raise cause
        if request and piece:
            request.failures[piece] = request.failures.get(piece, 0) + 1
            if request.failures[piece] == _TRIES:
                raise EngineError(
                    f"{_TRIES} workers failed at the same prompts of a member ({reason(cause)})"
                )
        self._lost(call.slot, f"failed ({reason(cause)})", request)

    def _lost(self, slot: _Slot, why: str, request: _Request | None) -> None:
        """Give the slot's piece to others, and start another actor or give the slot up."""
        if request:
            request.dispatch.lost(slot.number)
        ray.kill(slot.actor)
        slot.actor = None  # so that its results are ignored
        slot.failures += 1
        if slot.failures < _TRIES:
            logger.warning("%s %s; it is restarted", slot, why)
            return self._start(slot)
        del self._slots[slot.number]
        logger.warning(
            "%s %s; it is given up, and the run continues with %d", slot, why, len(self._slots)
        )
        if not self._slots:
            raise EngineError(
                f"no worker is left: the last {why}; fix it, then add --resume_from_checkpoint true"
            )

    def _start(self, slot: _Slot) -> None:
        options = cluster.resources(self._config)
        threads = cluster.threads(self._config)
        actor = ray.remote(EngineActor).options(**options)
        slot.actor = actor.remote(self._source, self._config, threads)
        slot.location = None
        self._expect(slot.actor.location.remote(), "locating", _Call(slot, slot.actor))

    def _grow(self) -> None:
        """Start as many workers as were requested, or as the cluster now has room for."""
        requested = self._config.num_workers or cluster.room(self._config)
        while self._started < requested:
            self._started += 1
            slot = _Slot(self._started)
            self._slots[slot.number] = slot
            self._start(slot)

    def _stop_engines(self, node: str) -> None:
        for slot in self._slots.values():
            if slot.actor and slot.location and slot.location.node == node:
                ray.kill(slot.actor)
