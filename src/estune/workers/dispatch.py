"""Decide which worker evaluates what: whole members first, then parts of the last ones.

Near the end of a step, a worker gets only a share of the prompts that are left, so that all
workers finish at about the same time (guided self-scheduling, Polychronopoulos & Kuck 1987,
https://doi.org/10.1109/TC.1987.5009495). Each piece has a fixed cost, for loading its member and
for its first tokens; the larger this cost, the fewer pieces. A piece that takes far longer than
expected is given to a second worker as well, and the first result counts.

This is bookkeeping alone, without processes or clocks: ray.py calls it for real workers,
benchmarks/simulate.py for simulated ones.
"""

import math
from collections import deque
from dataclasses import dataclass, field

_SHARES = 0.25  # more: smaller pieces and more loads; see `_share`
_MOST_PIECES = 8  # per member
_LATE = 3.0  # times its expected duration after which a piece goes to a second worker, too
_FADE = 1 - 1e-4  # factor on older pieces at each new one: completions change with θ


@dataclass(frozen=True)
class Piece:
    """Prompts `start` to `stop` (exclusive) of a member."""

    member: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass
class Pace:
    """A fit of seconds ≈ start + each · size over the finished pieces, kept from step to step.

    The fit is by least squares on seconds per prompt, because their spread does not depend on size.
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
        """Return `start` and `each`, both at least 0; (0, 0) before the first piece."""
        if not self._count:
            return 0.0, 0.0
        start = 0.0
        spread = self._count * self._xx - self._x**2
        if spread >= 1e-6 * self._x**2:  # else all pieces had the same size
            start = max(0.0, (self._count * self._xy - self._x * self._y) / spread)
        start = min(start, self._y / self._x)
        return start, max(0.0, (self._y - start * self._x) / self._count)

    def fixed(self, prompts: int) -> float:
        """Return the part of a member's time that every piece costs, however small it is."""
        start, each = self.fit()
        return start / (start + each * prompts) if start else 0.0


@dataclass
class _Running:
    """A piece's workers, and when the first of them began."""

    workers: set[int]
    since: float


@dataclass
class Dispatch:
    """The pieces of one population: left, running, done.

    Args:
        members: N.
        prompts: how many each member completes.
        pace: the durations of pieces in earlier populations.
    """

    members: int
    prompts: int
    pace: Pace = field(default_factory=Pace)
    _returned: deque[Piece] = field(default_factory=deque)  # their workers were lost
    _next: int = 0  # member · prompts + prompt of the first prompt that was never handed out
    _running: dict[Piece, _Running] = field(default_factory=dict)
    _done: int = 0
    _next_due: float = -math.inf  # nothing is late before

    @property
    def finished(self) -> bool:
        return self._done == self.members * self.prompts

    @property
    def in_flight(self) -> int:
        """The number of members that some worker is evaluating."""
        return len({piece.member for piece in self._running})

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        """Return the next piece for `worker`, one of `workers` alive; None if there is none."""
        if self._returned:
            piece: Piece | None = self._returned.popleft()
        else:
            piece = self._cut(workers) or self._late(now)
        if piece is not None:
            self._next_due = -math.inf
            self._running.setdefault(piece, _Running(set(), now)).workers.add(worker)
        return piece

    def done(self, piece: Piece, now: float) -> bool:
        """Record that `piece` was completed; return False if another worker was faster."""
        running = self._running.pop(piece, None)
        if running is None:
            return False
        self._done += piece.size
        self.pace.add(piece.size, now - running.since)
        return True

    def lost(self, worker: int) -> None:
        """Give what only `worker` was evaluating to others."""
        self._next_due = -math.inf
        for piece, running in list(self._running.items()):
            running.workers.discard(worker)
            if not running.workers:
                del self._running[piece]
                self._returned.append(piece)

    def _cut(self, workers: int) -> Piece | None:
        left = self.members * self.prompts - self._next
        if left == 0:
            return None
        member, start = divmod(self._next, self.prompts)
        least = math.ceil(self.prompts / _MOST_PIECES)
        share = self.prompts if workers == 1 else max(least, self._share(left, workers))
        stop = min(self.prompts, start + share)
        if self.prompts - stop < least:
            stop = self.prompts
        self._next = member * self.prompts + stop
        return Piece(member, start, stop)

    def _share(self, left: int, workers: int) -> int:
        """Return how many of the prompts that are left one worker gets at most.

        Among many members the last are likelier to include a very long one, so with many workers
        the cutting starts earlier: hence the logarithm.
        """
        # At most 0.5, so that something is always cut: otherwise a lower cost is never noticed.
        fixed = min(0.5, self.pace.fixed(self.prompts))
        shares = _SHARES * math.log2(8 * workers) * (1 - fixed) ** 2
        return round(left / (shares * workers))

    def _late(self, now: float) -> Piece | None:
        """Return the piece that is longest overdue among those with one worker, if any is."""
        start, each = self.pace.fit()
        if now < self._next_due or start == each == 0:
            return None
        due = {
            piece: running.since + _LATE * (start + each * piece.size)
            for piece, running in self._running.items()
            if len(running.workers) == 1
        }
        piece = min(due, key=due.__getitem__, default=None)
        self._next_due = due[piece] if piece else math.inf
        return piece if self._next_due <= now else None
