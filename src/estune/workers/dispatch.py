"""Decide which worker evaluates which prompts of which member.

A worker that asks gets a whole member, and near the end of a step only some prompts of one, so that
all workers finish at about the same time (guided self-scheduling, Polychronopoulos & Kuck 1987,
https://doi.org/10.1109/TC.1987.5009495). Each piece costs time beside its prompts, for loading the
member and for the first tokens; the larger this cost, the larger are the pieces. If a piece takes
far longer than expected, a second worker evaluates it as well, and the first result counts.

This module starts no processes and reads no clock: ray.py calls it for real workers, and
benchmarks/simulate.py for simulated ones.
"""

import math
from collections import deque
from dataclasses import dataclass, field

_SHARES = 0.25  # a larger value makes pieces smaller and more; see `_largest_piece`
_MOST_PIECES = 8  # per member
_LATE = 3.0  # a piece is late when it takes this many times its expected duration
_FADE = 1 - 1e-4  # each new piece multiplies the weight of older ones by this, as θ changes


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
    """How long pieces take: seconds ≈ start + each · size, fitted to the pieces finished so far.

    Divided by size, this is a line, y = each + start · x with x = 1 / size and y = seconds / size,
    and least squares fit it; y varies about as much for small pieces as for large ones.
    """

    _count: float = 0.0
    _x: float = 0.0  # the sum of x over the pieces; likewise of y, x² and x·y
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Include a finished piece of `size` prompts."""
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
        start = 0.0  # if all pieces have the same size, it cannot be told from `each`
        spread = self._count * self._xx - self._x**2
        if spread >= 1e-6 * self._x**2:
            slope = (self._count * self._xy - self._x * self._y) / spread
            start = min(max(0.0, slope), self._y / self._x)  # with more, `each` would be below 0
        return start, max(0.0, (self._y - start * self._x) / self._count)

    def fixed(self, prompts: int) -> float:
        """Return `start` as a fraction of the time of a whole member with `prompts` prompts."""
        start, each = self.fit()
        return start / (start + each * prompts) if start else 0.0


@dataclass
class _Running:
    """The workers that evaluate a piece, and when the first of them began."""

    workers: set[int]
    since: float


@dataclass
class Dispatch:
    """Hands out the pieces of one population, and records which are done.

    Args:
        members: N.
        prompts: the number of prompts that each member completes.
        pace: how long pieces took in earlier populations; it learns from this one.
    """

    members: int
    prompts: int
    pace: Pace = field(default_factory=Pace)
    _returned: deque[Piece] = field(default_factory=deque)  # handed out, but the worker was lost
    _next: int = 0  # prompts handed out so far, counted through all members
    _running: dict[Piece, _Running] = field(default_factory=dict)
    _done: int = 0  # prompts
    _next_due: float = -math.inf  # no piece is late before this time

    @property
    def finished(self) -> bool:
        return self._done == self.members * self.prompts

    @property
    def in_flight(self) -> int:
        """How many members are being evaluated now."""
        return len({piece.member for piece in self._running})

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        """Return the next piece for `worker`, which is one of `workers`; None if there is none."""
        if self._returned:
            piece: Piece | None = self._returned.popleft()
        else:
            piece = self._new_piece(workers) or self._late(now)
        if piece is not None:
            self._next_due = -math.inf
            self._running.setdefault(piece, _Running(set(), now)).workers.add(worker)
        return piece

    def done(self, piece: Piece, now: float) -> bool:
        """Record that `piece` is done; return False if another worker had done it before."""
        running = self._running.pop(piece, None)
        if running is None:
            return False
        self._done += piece.size
        self.pace.add(piece.size, now - running.since)
        return True

    def lost(self, worker: int) -> None:
        """Record that `worker` was lost; others get the pieces that it alone was evaluating."""
        self._next_due = -math.inf
        for piece, running in list(self._running.items()):
            running.workers.discard(worker)
            if not running.workers:
                del self._running[piece]
                self._returned.append(piece)

    def _new_piece(self, workers: int) -> Piece | None:
        """Return the rest of the current member, or a part of it if few prompts are left."""
        left = self.members * self.prompts - self._next
        if left == 0:
            return None
        member, start = divmod(self._next, self.prompts)
        smallest = math.ceil(self.prompts / _MOST_PIECES)
        size = self.prompts if workers == 1 else max(smallest, self._largest_piece(left, workers))
        stop = min(self.prompts, start + size)
        if self.prompts - stop < smallest:
            stop = self.prompts
        self._next = member * self.prompts + stop
        return Piece(member, start, stop)

    def _largest_piece(self, left: int, workers: int) -> int:
        """Return the most prompts of a new piece when `left` prompts are not handed out yet.

        Each worker gets a fraction of an equal share of them. The more workers there are, the
        likelier one of the last pieces takes very long; so the fraction falls with their logarithm.
        """
        # At least some members are cut, whatever a piece costs: sizes must differ for the fit.
        fixed = min(0.5, self.pace.fixed(self.prompts))
        shares = _SHARES * math.log2(8 * workers) * (1 - fixed) ** 2
        return round(left / (shares * workers))

    def _late(self, now: float) -> Piece | None:
        """Return the latest of the pieces that are late and that only one worker evaluates."""
        start, each = self.pace.fit()
        if now < self._next_due or start == each == 0:
            return None
        due = {  # when each becomes late
            piece: running.since + _LATE * (start + each * piece.size)
            for piece, running in self._running.items()
            if len(running.workers) == 1
        }
        piece = min(due, key=due.__getitem__, default=None)
        self._next_due = due[piece] if piece else math.inf
        return piece if self._next_due <= now else None
