"""Where a run's time goes: one line at its end, and with `profile` a trace for Chrome and Perfetto.

Engines report only how long they loaded and generated. In the trace, this time ends when the
trainer received the result, so the clocks of other machines do not matter. Rewards of several
members are computed at the same time, so they have a lane of their own.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from estune.workers.base import Work

_TRAINER, _REWARDS = 0, -1  # lanes; workers have 1, 2, …
_SHOWN = 0.0005  # `summary` leaves out activities below this fraction of the time


@dataclass
class Span:
    """The seconds that an activity took, once it has ended."""

    seconds: float = 0.0


class Timeline:
    """Sums the time of each activity; with a `path`, also writes a trace while the run goes on.

    The trace is a JSON array of events in Chrome's format. If the run is killed, the array has no
    closing bracket, which viewers accept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._started = time.perf_counter()
        self._epoch = time.time() - self._started  # perf_counter's zero, in seconds since 1970
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lanes: set[int] = set()
        self._lock = threading.Lock()  # reward functions finish in threads of their own
        self._scored = 0
        self.path = path
        self._file: TextIO | None = None
        if path:
            self._file = path.open("w", encoding="utf-8")
            process = {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "estune"}}
            self._file.write("[\n" + json.dumps(process))

    @contextmanager
    def span(self, activity: str) -> Iterator["Span"]:
        """Time an activity of the trainer. What an inner span counts, the outer one does not."""
        span = Span()
        started = time.perf_counter()
        before = sum(self._seconds.values())
        try:
            yield span
        finally:
            ended = time.perf_counter()
            span.seconds = ended - started
            inner = sum(self._seconds.values()) - before
            self._seconds[activity] += max(0.0, ended - started - inner)
            self._write(activity, _TRAINER, started, ended)

    def work(self, pieces: Iterable[Work], workers: int) -> None:
        """Record work of engines, `workers` of which work at the same time."""
        for piece in pieces:
            loaded = piece.ended - piece.generate
            self._seconds["load"] += piece.load / workers
            self._seconds["generate"] += piece.generate / workers
            self._write("load", piece.worker, loaded - piece.load, loaded)
            self._write("generate", piece.worker, loaded, piece.ended)

    def scored(self, started: float) -> None:
        """Record that the rewards requested at `started` (by perf_counter) have arrived.

        Waiting for them is recorded separately, by a span.
        """
        ended = time.perf_counter()
        with self._lock:
            self._scored += 1
            for phase, moment in (("b", started), ("e", ended)):
                at = self._microseconds(moment)
                self._event("score", _REWARDS, ph=phase, cat="rewards", id=self._scored, ts=at)

    def summary(self) -> str:
        """Return one line: the total in seconds, and each activity's fraction, largest first."""
        total = time.perf_counter() - self._started
        parts = self._seconds | {"other": total - sum(self._seconds.values())}
        largest = sorted(parts.items(), key=lambda part: -part[1])
        shown = [f"{name} {part / total:.1%}" for name, part in largest if part >= _SHOWN * total]
        return f"time: {total:.0f} s, " + ", ".join(shown)

    def close(self) -> None:
        """Close the trace."""
        with self._lock:
            if self._file:
                self._file.write("\n]\n")
                self._file.close()
                self._file = None

    def _write(self, activity: str, lane: int, started: float, ended: float) -> None:
        duration = round((ended - started) * 1e6, 1)
        with self._lock:
            self._event(activity, lane, ph="X", ts=self._microseconds(started), dur=duration)

    def _event(self, activity: str, lane: int, **fields: Any) -> None:
        if self._file is None:
            return
        if lane not in self._lanes:
            self._lanes.add(lane)
            label = {_TRAINER: "trainer", _REWARDS: "rewards"}.get(lane, f"worker {lane}")
            self._line({"name": "thread_name", "ph": "M", "args": {"name": label}}, lane)
        self._line({"name": activity} | fields, lane)

    def _line(self, event: dict[str, Any], lane: int) -> None:
        assert self._file is not None
        self._file.write(",\n" + json.dumps(event | {"pid": 0, "tid": lane + 1}))
        self._file.flush()

    def _microseconds(self, moment: float) -> float:
        return round((self._epoch + moment) * 1e6, 1)
