"""Who does what next: members are handed to whoever is free, and the last ones are cut up so that all end together.

Pure bookkeeping, without processes or clocks of its own: `ray.py` feeds it from real workers, benchmarks/simulate.py
from imagined ones. While much is left a worker gets a whole member. Towards the end of a step it gets a share of the
prompts that are left (guided self-scheduling, Polychronopoulos & Kuck 1987, https://doi.org/10.1109/TC.1987.5009495),
since loading a member is cheap beside generating. What takes far longer than the rest is given to a second worker, and
whoever is done first counts.
"""

from collections import deque
from dataclasses import dataclass, field

_SHARES = 1.5  # a worker gets at most 1/(_SHARES · workers) of what is left: more evens out more, and loads more often
_LEAST = 8  # parts of a member, at most
_LATE = 3.0  # times as long as such a piece usually takes


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
    """

    members: int
    prompts: int
    _back: deque[Piece] = field(default_factory=deque)  # given back by workers that were lost
    _next: int = 0  # flat position (member · prompts + prompt) of the first prompt that was never handed out
    _running: dict[Piece, _Running] = field(default_factory=dict)
    _done: int = 0
    _seconds: float = 0.0  # that the `_done` prompts took

    @property
    def finished(self) -> bool:
        return self._done == self.members * self.prompts

    @property
    def under_way(self) -> int:
        """Members that somebody is at."""
        return len({piece.member for piece in self._running})

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        """What `worker`, one of `workers` that are alive, does next; None when there is nothing for it."""
        piece = self._back.popleft() if self._back else self._cut(workers) or self._late(now)
        if piece is not None:
            self._running.setdefault(piece, _Running(set(), now)).workers.add(worker)
        return piece

    def done(self, piece: Piece, now: float) -> bool:
        """`piece` was answered; False when another worker had answered it before."""
        running = self._running.pop(piece, None)
        if running is None:
            return False
        self._done += piece.size
        self._seconds += now - running.since
        return True

    def lost(self, worker: int) -> None:
        """What `worker` was at must be done by another."""
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
        share = self.prompts if workers == 1 else max(least, round(left / (_SHARES * workers)))
        stop = min(self.prompts, start + share)
        if self.prompts - stop < least:
            stop = self.prompts
        self._next = member * self.prompts + stop
        return Piece(member, start, stop)

    def _late(self, now: float) -> Piece | None:
        """The piece that is longest overdue, unless two are at it."""
        if not self._seconds:
            return None
        usual = self._seconds / self._done
        alone = [(piece, running) for piece, running in self._running.items() if len(running.workers) == 1]
        piece, running = min(alone, key=lambda pair: pair[1].since, default=(None, None))
        if piece is None or running is None or now - running.since < _LATE * usual * piece.size:
            return None
        return piece
