"""Where a run's time goes: a line at its end, and with `profile` a trace that Chrome and Perfetto show.

Engines say how long they loaded and generated, the trainer when the answer came; so a worker's spans end there, and a clock that is
not this machine's does not matter. Scores of several members overlap, and have a lane of their own.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from estune.workers.base import Work

_TRAINER, _REWARDS = 0, -1  # lanes; workers have 1, 2, …


class Timeline:
    """Sums what was done, and writes it down as it goes where a `path` is given.

    The file is Chrome's JSON array of events; a run that is killed leaves one without its closing bracket, which viewers accept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._began = time.perf_counter()
        self._epoch = time.time() - self._began  # seconds from a moment on perf_counter to 1970
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lanes: set[int] = set()
        self._lock = threading.Lock()  # rewards come from threads of their own
        self._scored = 0
        self.path = path
        self._file: TextIO | None = None
        if path:
            self._file = path.open("w", encoding="utf-8")
            self._file.write(
                '[\n{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "estune"}}'
            )

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """The trainer does `what`. One that is within another counts for itself, not for the other."""
        started, before = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            ended = time.perf_counter()
            self._seconds[what] += max(
                0.0, ended - started - (sum(self._seconds.values()) - before)
            )
            self._write(what, _TRAINER, started, ended)

    def work(self, pieces: Iterable[Work], workers: int) -> None:
        """`workers` engines answered these meanwhile: each second of one is a part of the trainer's."""
        for piece in pieces:
            began = piece.ended - piece.generate
            self._seconds["load"] += piece.load / workers
            self._seconds["generate"] += piece.generate / workers
            self._write("load", piece.worker, began - piece.load, began)
            self._write("generate", piece.worker, began, piece.ended)

    def scored(self, started: float) -> None:
        """RewardFunctions of a member that were asked for at a moment of perf_counter are there. Who waits for them says so by a span."""
        ended = time.perf_counter()
        with self._lock:
            self._scored += 1
            for phase, moment in (("b", started), ("e", ended)):
                self._event(
                    "score",
                    _REWARDS,
                    ph=phase,
                    cat="rewards",
                    id=self._scored,
                    ts=self._microseconds(moment),
                )

    def summary(self) -> str:
        """One line: seconds in all, and the parts, largest first."""
        whole = time.perf_counter() - self._began
        parts = self._seconds | {"other": whole - sum(self._seconds.values())}
        largest = sorted(parts.items(), key=lambda part: -part[1])
        shown = [
            f"{what} {seconds / whole:.1%}"
            for what, seconds in largest
            if seconds >= 0.0005 * whole
        ]
        return f"time: {whole:.0f} s, " + ", ".join(shown)

    def close(self) -> None:
        """End the file."""
        with self._lock:
            if self._file:
                self._file.write("\n]\n")
                self._file.close()
                self._file = None

    def _write(self, what: str, lane: int, started: float, ended: float) -> None:
        duration = round((ended - started) * 1e6, 1)
        with self._lock:
            self._event(what, lane, ph="X", ts=self._microseconds(started), dur=duration)

    def _event(self, what: str, lane: int, **fields: Any) -> None:
        if not self._file:
            return
        if lane not in self._lanes:
            self._lanes.add(lane)
            named = {_TRAINER: "trainer", _REWARDS: "rewards"}.get(lane, f"worker {lane}")
            self._line({"name": "thread_name", "ph": "M", "args": {"name": named}}, lane)
        self._line({"name": what} | fields, lane)

    def _line(self, event: dict[str, Any], lane: int) -> None:
        assert self._file
        self._file.write(",\n" + json.dumps(event | {"pid": 0, "tid": lane + 1}))
        self._file.flush()

    def _microseconds(self, moment: float) -> float:
        return round((self._epoch + moment) * 1e6, 1)
