"""Who does what next: members are handed to whoever is free, and the last ones are cut up so that all end together.

Pure bookkeeping, without processes or clocks of its own: `ray.py` feeds it from real workers, benchmarks/simulate.py
from imagined ones. While much is left a worker gets a whole member. Towards the end of a step it gets a share of the
prompts that are left (guided self-scheduling, Polychronopoulos & Kuck 1987, https://doi.org/10.1109/TC.1987.5009495).
A piece pays for loading its member and for its first tokens whatever its size, so the more that is seen to cost, the
less is cut. What takes far longer than the rest is given to a second worker, and whoever is done first counts.
"""

import math
from collections import deque
from dataclasses import dataclass, field

# A worker gets at most 1/(shares · workers) of what is left, shares = _SHARES · log₂(8 · workers) · (1 − fixed)²: the last of
# many members are likelier to include a very long one, so more workers begin to cut earlier. More shares load more often.
_SHARES = 0.25
_LEAST = 8  # parts of a member, at most
_LATE = 3.0  # times as long as such a piece usually takes
_FADE = (
    1 - 1e-4
)  # how much of what was learned before a piece counts beside it: answers change as a model learns


@dataclass(frozen=True)
class Piece:
    """Prompts start … stop of the member `member`."""

    member: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass
class Pace:
    """How long pieces take: seconds ≈ start + each · size, fitted to seconds a prompt, whose spread is the same for all sizes.

    It may outlive a population, so that the next one knows from its first piece on what cutting costs.
    """

    _count: float = 0.0
    _x: float = 0.0  # sums over pieces, of x = 1 / size and y = seconds / size
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, size: int, seconds: float) -> None:
        x, y = 1 / size, seconds / size
        self._count = _FADE * self._count + 1
        self._x = _FADE * self._x + x
        self._y = _FADE * self._y + y
        self._xx = _FADE * self._xx + x * x
        self._xy = _FADE * self._xy + x * y

    def fit(self) -> tuple[float, float]:
        """`start` and `each`, neither below 0; 0 and 0 when nothing was done yet."""
        if not self._count:
            return 0.0, 0.0
        spread = self._count * self._xx - self._x**2
        alike = spread < 1e-6 * self._x**2  # all of one size: nothing tells `start` from `each`
        start = 0.0 if alike else max(0.0, (self._count * self._xy - self._x * self._y) / spread)
        start = min(start, self._y / self._x)
        return start, max(0.0, (self._y - start * self._x) / self._count)

    def fixed(self, prompts: int) -> float:
        """The part of a member's time that each piece of it takes whatever its size, from 0 to 1."""
        start, each = self.fit()
        return start / (start + each * prompts) if start else 0.0


@dataclass
class _Running:
    """A piece that some workers are at, and since when."""

    workers: set[int]
    since: float


@dataclass
class Dispatch:
    """The pieces of one population: what is left, what is under way, what is done.

    Args:
        members: N.
        prompts: that each member answers.
        pace: what earlier populations taught.
    """

    members: int
    prompts: int
    pace: Pace = field(default_factory=Pace)
    _back: deque[Piece] = field(default_factory=deque)  # given back by workers that were lost
    _next: int = (
        0  # flat position (member · prompts + prompt) of the first prompt that was never handed out
    )
    _running: dict[Piece, _Running] = field(default_factory=dict)
    _done: int = 0
    _calm: float = -math.inf  # until then nothing is late

    @property
    def finished(self) -> bool:
        return self._done == self.members * self.prompts

    @property
    def in_flight(self) -> int:
        """Members that somebody is at."""
        return len({piece.member for piece in self._running})

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        """What `worker`, one of `workers` that are alive, does next; None when there is nothing for it."""
        piece = self._back.popleft() if self._back else self._cut(workers) or self._late(now)
        if piece is not None:
            self._calm = -math.inf
            self._running.setdefault(piece, _Running(set(), now)).workers.add(worker)
        return piece

    def done(self, piece: Piece, now: float) -> bool:
        """`piece` was answered; False when another worker had answered it before."""
        running = self._running.pop(piece, None)
        if running is None:
            return False
        self._done += piece.size
        self.pace.add(piece.size, now - running.since)
        return True

    def lost(self, worker: int) -> None:
        """What `worker` was at must be done by another."""
        self._calm = -math.inf
        for piece, running in list(self._running.items()):
            running.workers.discard(worker)
            if not running.workers:
                del self._running[piece]
                self._back.append(piece)

    def _cut(self, workers: int) -> Piece | None:
        left = self.members * self.prompts - self._next
        if left == 0:
            return None
        member, start = divmod(self._next, self.prompts)
        least = -(-self.prompts // _LEAST)
        share = self.prompts if workers == 1 else max(least, self._share(left, workers))
        stop = min(self.prompts, start + share)
        if self.prompts - stop < least:
            stop = self.prompts
        self._next = member * self.prompts + stop
        return Piece(member, start, stop)

    def _share(self, left: int, workers: int) -> int:
        fixed = min(
            0.5, self.pace.fixed(self.prompts)
        )  # some is always cut, else it would not be seen when it pays again
        return round(left / (_SHARES * math.log2(8 * workers) * (1 - fixed) ** 2 * workers))

    def _late(self, now: float) -> Piece | None:
        """The piece that is longest overdue, unless two are at it."""
        start, each = self.pace.fit()
        if now < self._calm or start == each == 0:
            return None
        alone = [
            (running.since + _LATE * (start + each * piece.size), piece)
            for piece, running in self._running.items()
            if len(running.workers) == 1
        ]
        due, piece = min(alone, key=lambda pair: pair[0], default=(math.inf, None))
        self._calm = due
        return piece if due <= now else None
