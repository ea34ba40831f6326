"""A sandbox is used once it has proven itself, and refused by the name of what gets through."""

import os
import time

import pytest
from conftest import made

from estune.rewards.sandbox import PROVEN, UNLOCKED, proven
from estune.rewards.sandbox.kinds import Unusable
from estune.rewards.sandbox.proof import prove


@pytest.fixture(autouse=True)
def unproven(monkeypatch):
    monkeypatch.delenv(PROVEN, raising=False)
    monkeypatch.delenv(UNLOCKED, raising=False)
    proven.cache_clear()
    yield
    proven.cache_clear()
    os.environ.pop(PROVEN, None)


def test_it_passes_in_two_seconds(sandbox):
    prove(sandbox)
    best = min(_seconds(prove, sandbox) for _ in range(2))
    assert best < 2


def _seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def without_network(box):
    box._options_before = box._options
    box._options = lambda limits: [each for each in box._options_before(limits) if each != "--unshare-net"]


def test_a_sandbox_that_shows_the_disk_is_refused():
    box = made("bubblewrap")
    options = box._options
    box._options = lambda limits: [*options(limits)[:-7], "--ro-bind", "/", "/old", *options(limits)[-7:]]
    box._options = lambda limits: ["--ro-bind", "/tmp", "/tmp", *options(limits)]
    with pytest.raises(Unusable, match=r"^bubblewrap: a program in it could read a file outside$"):
        prove(box)
