"""Many engines on a Ray cluster or on this machine; any of them may die, hang or join late.

A thread hands out pieces of members and collects their completions, while the trainer scores those
that it already has. θ is not sent: each node has its own θ (keepers.py) and applies the same
updates. If a worker is lost, another one does its piece, so the result is the same.
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
from estune.common.types import Completion, ExpertCounts, Prompt, Sampling, ThetaUpdate, Variant
from estune.config import ESConfig
from estune.errors import EngineError, InputError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.actors import EngineActor, Location
from estune.workers.base import Evaluation, Status, Work, Workers
from estune.workers.dispatch import Dispatch, Pace, Piece
from estune.workers.keepers import Keepers
from estune.workers.model_source import ModelSource

logger = logging.getLogger(__name__)

_TRIES = 3  # a worker is given up, and a piece ends the run, after so many failures
_TICK = 0.5  # seconds between checks for late workers
_LAST_TICK = 0.02  # the same once all pieces are done, so that the step ends at once


@dataclass
class _Slot:
    """A worker's number, the actor that does its work now, and what that actor is doing.

    A lost actor is replaced by another one in the same slot.
    """

    number: int
    actor: Any = None
    state: str = "locating"  # then "building", then "idle" or "busy"
    since: float = 0.0  # when the state began
    location: Location | None = None
    failures: int = 0  # in a row

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.location}" if self.location else "")


@dataclass
class _Request:
    """One call of `evaluate` in progress."""

    members: Sequence[Variant]
    prompts: Any  # a reference to the prompts in Ray's object store
    budget: int  # tokens per completion
    dispatch: Dispatch
    sampling: Sampling | None
    # Of unfinished members: member → prompt → completions.
    completions: dict[int, dict[int, list[Completion]]] = field(default_factory=dict)
    work: dict[int, list[Work]] = field(default_factory=dict)  # of each member
    failures: dict[Piece, int] = field(default_factory=dict)
    results: "queue.Queue[Evaluation | BaseException]" = field(default_factory=queue.Queue)
    ended: threading.Event = field(default_factory=threading.Event)

    def collect(self, piece: Piece, completions: list[Completion], work: Work) -> None:
        """Keep a piece's completions; if its member is complete, put the member into `results`."""
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
        """Return the next result, or None if none comes within a tick."""
        try:
            return self.results.get(timeout=_TICK)
        except queue.Empty:
            return None


@dataclass(frozen=True)
class _Call:
    """A call of an actor's method whose result is awaited; `piece` if it evaluates one."""

    slot: _Slot
    actor: Any
    piece: Piece | None = None
    request: _Request | None = None


class RayWorkers(Workers):
    """Evaluates members on all engines of a Ray cluster.

    Args:
        theta: the trainer's θ, in shared memory; it is still θ₀.
        source: the base model.
        config: `num_workers`, `ray_address`, `worker_timeout`, and what the engines need.
        prompts: all prompts of the run, by dataset.

    Raises:
        InputError: Ray or an engine cannot start, or a prompt is too long.
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
        self._slots_made = 0  # slots that were given up included
        self._calls: dict[Any, _Call] = {}  # Ray's reference to the result → the call
        self._request: _Request | None = None
        self._pace = Pace()
        # The first engine that is ready checks the prompts' lengths; then this becomes None.
        self._prompts_to_check: Mapping[str, Sequence[Prompt]] | None = prompts
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
            request.ended.set()
            thread.join()

    def update(self, update: ThetaUpdate) -> None:
        self.keepers.update(update)

    def verify(self, digest: str) -> None:
        self.keepers.verify(digest)

    def status(self) -> Status:
        in_flight = self._request.dispatch.in_flight if self._request else 0
        return Status(len(self.locations()), len(self._slots), in_flight)

    def locations(self) -> list[Location]:
        """Return where the engines run that are ready."""
        ready = [slot for slot in self._slots.values() if slot.state in ("idle", "busy")]
        return [slot.location for slot in ready if slot.location]

    def _run(self, request: _Request) -> None:
        """Give the workers pieces of `request` until `evaluate` ends it; runs in a thread."""
        try:
            self._grow()
            if not self._slots:
                raise EngineError("no worker is left")  # an earlier request told why
            while not request.ended.is_set():
                self._turn(request)
        except BaseException as error:
            request.results.put(error)

    def _turn(self, request: _Request | None) -> None:
        """Hand pieces to idle workers, process a result if one comes, and replace late workers."""
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

    def _hand_out(self, slot: _Slot, alive: int, request: _Request) -> None:
        """Give an idle worker the next piece, if there is one."""
        piece = request.dispatch.take(slot.number, alive, time.monotonic())
        if piece is None:
            return
        reference = slot.actor.evaluate_one.remote(
            request.members[piece.member],
            request.prompts,
            piece.start,
            piece.stop,
            request.budget,
            request.sampling,
        )
        self._await(reference, "busy", _Call(slot, slot.actor, piece, request))

    def _await(self, reference: Any, state: str, call: _Call) -> None:
        """Record that `call` is in progress, and that its slot is in `state` because of it."""
        call.slot.state, call.slot.since = state, time.monotonic()
        self._calls[reference] = call

    def _receive_next(self, request: _Request | None) -> None:
        """Wait for at most a tick, and process one result."""
        tick = _LAST_TICK if request and request.dispatch.finished else _TICK
        if not self._calls:
            time.sleep(tick)
            return
        for reference in ray.wait(list(self._calls), num_returns=1, timeout=tick)[0]:
            call = self._calls.pop(reference)
            if call.actor is call.slot.actor:  # not a call of an actor that was replaced
                self._receive(call, reference, request)

    def _receive(self, call: _Call, reference: Any, request: _Request | None) -> None:
        """Process the result or the error of a call that has ended."""
        slot = call.slot
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            self._failed(call, error.cause, request)
        except RayError as error:
            self._lost(slot, f"was lost ({reason(error)})", request)
        else:
            if slot.state == "locating":
                self._build(slot, result)
            elif slot.state == "building":
                self._check_lengths(slot)
            else:
                self._evaluated(call, result, request)

    def _evaluated(
        self,
        call: _Call,
        result: tuple[list[Completion], float, float, ExpertCounts],
        request: _Request | None,
    ) -> None:
        """Mark the worker as idle; keep its completions unless another worker had the piece."""
        call.slot.state, call.slot.failures = "idle", 0
        if not request or not call.piece or call.request is not request:
            return  # the piece belongs to an earlier request, in which another worker was faster
        if request.dispatch.done(call.piece, time.monotonic()):
            completions, load, generate, experts = result
            work = Work(call.slot.number, load, generate, experts)
            request.collect(call.piece, completions, work)

    def _build(self, slot: _Slot, location: Location) -> None:
        """Build the engine of an actor that runs at `location`."""
        slot.location = location
        node = location.node
        try:
            address = self._theta.address if node == self._home else self.keepers.address(node)
        except RayError as error:
            return self._lost(slot, f"has no θ on its node ({reason(error)})", None)
        self._await(slot.actor.build.remote(address), "building", _Call(slot, slot.actor))

    def _check_lengths(self, slot: _Slot) -> None:
        """Let an engine check the prompts' lengths if none has done so; then its slot is idle."""
        if self._prompts_to_check is not None:
            try:
                ray.get(slot.actor.check_lengths.remote(self._prompts_to_check))
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                return self._lost(slot, f"was lost ({reason(error)})", None)
            self._prompts_to_check = None
        slot.state, slot.failures = "idle", 0
        logger.info("%s is ready", slot)

    def _failed(self, call: _Call, cause: Exception, request: _Request | None) -> None:
        """Replace the actor whose call raised `cause`; raise if another actor would fail too.

        A piece of an earlier request may fail because θ was updated meanwhile, which is no fault:
        another worker had already done that piece.
        """
        piece = call.piece
        if piece and call.request is not request:
            call.slot.state = "idle"
            return
        if isinstance(cause, InputError) and (piece or self._prompts_to_check is not None):
            raise cause
        if request and piece:
            request.failures[piece] = request.failures.get(piece, 0) + 1
            if request.failures[piece] == _TRIES:
                raise EngineError(
                    f"{_TRIES} workers failed at the same prompts of a member ({reason(cause)})"
                )
        self._lost(call.slot, f"failed ({reason(cause)})", call.request)

    def _lost(self, slot: _Slot, why: str, request: _Request | None) -> None:
        """Give the slot's piece to others; start another actor, or give the slot up."""
        if request:
            request.dispatch.lost(slot.number)
        ray.kill(slot.actor)
        slot.actor = None  # results that still come from it are then ignored
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
                f"no worker is left: the last one {why}; fix that, then add "
                "--resume_from_checkpoint true"
            )

    def _start(self, slot: _Slot) -> None:
        """Start an actor for the slot, and ask it where it runs."""
        options = cluster.resources(self._config)
        threads = cluster.threads(self._config)
        actor = ray.remote(EngineActor).options(**options)
        slot.actor = actor.remote(self._source, self._config, threads)
        slot.location = None
        self._await(slot.actor.location.remote(), "locating", _Call(slot, slot.actor))

    def _grow(self) -> None:
        """Start workers until there are `num_workers`, or as many as the cluster has room for.

        Workers that were given up count, so they are not started again.
        """
        wanted = self._config.num_workers or max(1, cluster.room(self._config))
        while self._slots_made < wanted:
            self._slots_made += 1
            slot = _Slot(self._slots_made)
            self._slots[slot.number] = slot
            self._start(slot)

    def _stop_engines(self, node: str) -> None:
        """Kill the engines on a node; their calls then fail, and they are replaced."""
        for slot in self._slots.values():
            if slot.actor and slot.location and slot.location.node == node:
                ray.kill(slot.actor)
