"""A sandbox is used only after its proof, and refused with the name of what gets through."""

import functools
import os
import platform

import pytest
from boxes import made

from estune.errors import RewardError
from estune.rewards import marks, sandbox
from estune.rewards.sandbox import PROVEN, UNLOCKED, Limits, Unlocked, proven
from estune.rewards.sandbox.interface import Unusable
from estune.rewards.sandbox.proof import prove
from estune.rewards.sandbox.seccomp import program_filter


@pytest.fixture(autouse=True)
def unproven(monkeypatch):
    monkeypatch.delenv(UNLOCKED, raising=False)
    monkeypatch.setenv(PROVEN, "")
    proven.cache_clear()
    yield
    proven.cache_clear()


def test_each_sandbox_passes_its_proof(sandbox):
    prove(sandbox)


class Leaky:
    """bubblewrap with options added or missing."""

    name = "leaky"

    def __init__(self, monkeypatch, change):
        self._box = made("bubblewrap")
        options = self._box._options
        monkeypatch.setattr(self._box, "_options", lambda limits: change(options(limits)))

    def run(self, source, request, limits):
        return self._box.run(source, request, limits)


def without_filter(monkeypatch, box):
    monkeypatch.setattr(box._box, "_seccomp", ALLOW_ALL)
    return box


ALLOW_ALL = (6).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")


def test_a_sandbox_that_shows_the_disk_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("tempfile.tempdir", None)
    leaky = Leaky(monkeypatch, lambda options: ["--bind", "/tmp", "/tmp", *options])
    with pytest.raises(Unusable, match=r"^leaky: a program in it could write a file outside$"):
        prove(leaky)


def test_a_sandbox_with_a_network_and_no_filter_is_refused_by_name(monkeypatch):
    leaky = Leaky(
        monkeypatch, lambda options: [each for each in options if each != "--unshare-net"]
    )
    with pytest.raises(Unusable, match=r"^leaky: a program in it could (connect|send|use|take)"):
        prove(without_filter(monkeypatch, leaky))


class Bounded:
    """A sandbox with one limit too high."""

    name = "loose"

    def __init__(self, **loose):
        self._box, self._loose = made("bubblewrap"), loose

    def run(self, source, request, limits):
        return self._box.run(source, request, Limits(**(vars(limits) | self._loose)))


AMOUNTS = {
    "take more memory with its children": {"memory": 4 << 30},
    "start more processes": {"processes": 1000},
    "write more to the disk": {"disk": 1 << 30},
}


@pytest.mark.parametrize(("name", "loose"), AMOUNTS.items(), ids=AMOUNTS)
def test_a_sandbox_that_does_not_limit_an_amount_is_refused_by_name(name, loose):
    with pytest.raises(Unusable, match=f"^loose: a program in it could {name}$"):
        prove(Bounded(**loose))


def test_a_sandbox_that_does_not_start_is_refused_with_its_reason(monkeypatch):
    broken = Leaky(monkeypatch, lambda options: ["--no-such-option", *options])
    with pytest.raises(Unusable, match=r"^leaky: programs don't run in it \(.*no-such-option\)$"):
        prove(broken)


def test_without_a_proven_sandbox_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RewardError) as raised:
        proven()
    said = str(raised.value)
    assert "(bubblewrap: bwrap is not installed; sandlock: the package is not installed)" in said
    assert "so nothing was run; install bubblewrap" in said
    assert "\n" not in said


def test_the_second_sandbox_is_tried_if_the_first_is_missing(monkeypatch):
    made("sandlock")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert proven().name == "sandlock"


def test_a_child_process_does_not_repeat_the_proof(monkeypatch):
    made("bubblewrap")
    first = proven()
    assert os.environ[PROVEN] == first.name
    proven.cache_clear()
    monkeypatch.setattr(sandbox, "prove", lambda box: pytest.fail("proven a second time"))
    assert proven().name == first.name


def test_a_wrapped_function_is_prepared():
    calls = []

    @marks.prepared_by(lambda: calls.append(1))
    def reward(completions, **columns):
        return [0.0]

    marks.prepare(functools.partial(reward, seconds=1))
    marks.prepare(reward)
    marks.prepare(len)
    assert calls == [1, 1]


def test_running_without_a_sandbox_does_not_pass_the_proof(monkeypatch):
    with pytest.raises(Unusable, match=r"^unlocked: a program in it could write a file outside$"):
        prove(Unlocked())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_filter_is_short_enough_for_the_kernel(monkeypatch, machine, on_disk):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    instructions = program_filter(on_disk=on_disk)
    assert len(instructions) % 8 == 0
    assert 100 < len(instructions) // 8 < 4096
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert program_filter(on_disk=on_disk) == b""
