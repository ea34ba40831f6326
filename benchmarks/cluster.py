"""Imagined workers in virtual time, and the simpler schedulers that ours is compared with.

Times are in members: 1 is the average time to generate one member. All of a member's prompts take
equally long. Scoring, updating θ and messages take no time.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from estune.workers.dispatch import Dispatch, Pace, Piece

PROMPTS = 200
MEMBER_SECONDS = 30.0  # assumed duration of a member, where seconds matter
TICK = 0.5 / MEMBER_SECONDS  # how often idle workers look for late pieces, as in workers/ray.py


class Schedule(Protocol):
    """The part of `Dispatch` that hands out pieces of one population."""

    @property
    def finished(self) -> bool: ...
    def take(self, worker: int, workers: int, now: float) -> Piece | None: ...
    def done(self, piece: Piece, now: float) -> bool: ...
    def lost(self, worker: int) -> None: ...


class Greedy:
    """Give a whole member to each free worker."""

    def __init__(self, members: int, prompts: int) -> None:
        self._left = deque(Piece(member, 0, prompts) for member in range(members))
        self._open = members
        self._running: dict[int, Piece] = {}  # worker → its piece

    @property
    def finished(self) -> bool:
        return self._open == 0

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        queue = self._queue(worker)
        if not queue:
            return None
        self._running[worker] = queue.popleft()
        return self._running[worker]

    def done(self, piece: Piece, now: float) -> bool:
        self._open -= 1
        return True

    def lost(self, worker: int) -> None:
        self._queue(worker).appendleft(self._running.pop(worker))

    def _queue(self, worker: int) -> deque[Piece]:
        return self._left


class Static(Greedy):
    """Give member i to worker i mod W. A lost worker's members wait until it is back."""

    def __init__(self, members: int, prompts: int, workers: int) -> None:
        super().__init__(members, prompts)
        whole = list(self._left)
        self._queues = [deque(whole[worker::workers]) for worker in range(workers)]

    def _queue(self, worker: int) -> deque[Piece]:
        return self._queues[worker]


def scheduler(name: str, workers: int) -> Callable[[int], Schedule]:
    """Return a function that makes the schedule of a population of N members."""
    if name == "static":
        return lambda members: Static(members, PROMPTS, workers)
    if name == "greedy":
        return lambda members: Greedy(members, PROMPTS)
    pace = Pace()  # learned over all steps
    return lambda members: Dispatch(members, PROMPTS, pace)


@dataclass(frozen=True)
class World:
    """The properties of the imagined workers; times are in members."""

    workers: int
    load: float = 0.01  # time to load a member
    fixed: float = 0.0  # part of a member's time that each of its pieces takes, whatever its size
    fails: float = 0.0  # losses of a worker per member's time of work
    back: float = 2.0  # time until a lost worker is back
    slow_part: float = 0.0  # part of the workers that are slow
    slower: float = 4.0  # how many times as long they take


@dataclass(frozen=True)
class Times:
    """Durations of members, 1 on average: lognormal, or drawn from measured ones."""

    sigma: float
    seed: int
    measured: list[float] | None = None

    def draw(self, steps: int, members: int) -> list[list[float]]:
        """Return one list of `members` durations per step."""
        random = np.random.default_rng([self.seed, members])
        if self.measured:
            drawn = random.choice(self.measured, (steps, members)) / np.mean(self.measured)
        else:
            drawn = random.lognormal(-(self.sigma**2) / 2, self.sigma, (steps, members))
        listed: list[list[float]] = drawn.tolist()
        return listed


@dataclass(frozen=True)
class Event:
    """A worker finishes its piece, is lost while it works on it, or is back after a loss."""

    kind: Literal["done", "lost", "back"]
    worker: int
    piece: Piece | None = None
    schedule: Schedule | None = None  # which handed out the piece


class Cluster:
    """Imagined workers and their clock.

    A worker that is still busy when a step ends carries its piece over into the next step.
    """

    def __init__(self, world: World, random: np.random.Generator) -> None:
        self.now = 0.0
        self.loads = 0
        self.turns = 0
        self._world = world
        self._random = random
        self._events: list[tuple[float, int, Event]] = []  # a heap, by time
        self._number = itertools.count()  # events of the same time happen in this order
        self._idle = list(range(world.workers))
        self._away = 0
        self._holds: dict[int, int] = {}  # worker → the member that it has loaded
        slow = random.permutation(world.workers) < round(world.slow_part * world.workers)
        self._slowness: list[float] = np.where(slow, world.slower, 1.0).tolist()

    def step(self, schedule: Schedule, seconds: list[float]) -> Iterator[Piece]:
        """Evaluate one population; yield each piece when it is done, unless it was done before.

        Args:
            seconds: the duration of each member.
        """
        self._holds.clear()
        self._hand_out(schedule, seconds)
        while not schedule.finished:
            self.turns += 1
            event = self._next_event()
            if event and event.kind == "done" and self._counts(event, schedule):
                assert event.piece
                yield event.piece
            if event:
                self._move(event, schedule)
            self._hand_out(schedule, seconds)

    def _next_event(self) -> Event | None:
        """Move the clock to the next event, but only by a tick while workers are idle."""
        if self._idle and self._events[0][0] > self.now + TICK:
            self.now += TICK
            return None
        self.now, _, event = heapq.heappop(self._events)
        return event

    def _counts(self, event: Event, schedule: Schedule) -> bool:
        """Whether the piece belongs to this step and was not done before."""
        if event.schedule is not schedule or event.piece is None:
            return False
        return schedule.done(event.piece, self.now)

    def _move(self, event: Event, schedule: Schedule) -> None:
        """Make the event's worker idle, or away if it was lost."""
        if event.kind != "lost":
            self._away -= event.kind == "back"
            self._idle.append(event.worker)
            return
        self._away += 1
        self._holds.pop(event.worker, None)
        self._plan(self._world.back, Event("back", event.worker))
        if event.schedule is schedule:
            schedule.lost(event.worker)

    def _hand_out(self, schedule: Schedule, seconds: list[float]) -> None:
        alive = self._world.workers - self._away
        idle = []
        for worker in self._idle:
            piece = schedule.take(worker, alive, self.now)
            if piece is None:
                idle.append(worker)
            else:
                self._start(worker, schedule, piece, seconds[piece.member])
        self._idle = idle

    def _start(self, worker: int, schedule: Schedule, piece: Piece, seconds: float) -> None:
        world = self._world
        duration = seconds * (world.fixed + (1 - world.fixed) * piece.size / PROMPTS)
        if self._holds.get(worker) != piece.member:
            self._holds[worker] = piece.member
            self.loads += 1
            duration += world.load
        duration *= self._slowness[worker]
        survives = self._random.exponential(1 / world.fails) if world.fails else duration
        kind: Literal["done", "lost"] = "done" if survives >= duration else "lost"
        self._plan(min(duration, survives), Event(kind, worker, piece, schedule))

    def _plan(self, wait: float, event: Event) -> None:
        heapq.heappush(self._events, (self.now + wait, next(self._number), event))
