"""θ on a device has the bits of θ on a CPU, and so do members that stream from host memory.

These tests need no GPU: CPU tensors replace a device's, with torch's kernels or Triton's
interpreter. For streams and page-locking they check only the order of the calls.
"""

import gc
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import device_child
import pytest
import torch
from device_child import COEFFICIENTS, SEEDS, SHAPES, base, bits, updated
from helpers import triton_environment

from estune.common.types import Candidate, Member, ThetaUpdate
from estune.errors import JournalError, ModelError
from estune.noise import kernels
from estune.noise import torch as by_torch
from estune.theta import writer
from estune.theta.shared_memory import SharedTensors
from estune.theta.streaming import Staging, lock
from estune.theta.theta import Theta

CHILD = Path(__file__).parent / "device_child.py"


@pytest.fixture
def checkpoint(tmp_path):
    return base(tmp_path)


@pytest.fixture
def here(checkpoint) -> Theta:
    return updated(checkpoint)


@pytest.fixture
def device(here, monkeypatch) -> None:
    """CPU tensors are taken for a device's, once `here` was made."""
    monkeypatch.setattr(kernels, "on_device", kernels.on_device)  # to be put back
    monkeypatch.setattr(writer, "DEVICE_JOB", 0)
    device_child.stand_in(by_torch)


def test_after_updates_with_and_without_decay_theta_and_its_members_have_the_same_bits(
    here, checkpoint, device
):
    wanted = (here.digest(), bits_on_cpu(here), here.root_mean_square())
    there = updated(checkpoint)
    assert there.on_device and not here.on_device
    assert (there.digest(), bits(there), there.root_mean_square()) == wanted


def bits_on_cpu(theta: Theta) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "on_device", lambda kind: None)
        return bits(theta)


@pytest.mark.slow
def test_with_tritons_kernels_too(tmp_path):
    command = [sys.executable, str(CHILD), str(tmp_path)]
    done = subprocess.run(
        command, env=triton_environment(interpret=True), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == dict.fromkeys(
        ("digest", "members", "streamed", "on a device", "numba"), True
    )


def test_a_snapshot_goes_from_a_device_to_a_cpu_and_back(here, checkpoint, device, tmp_path):
    there = updated(checkpoint)
    there.save(tmp_path / "theta.safetensors")
    there.reset(checkpoint)
    assert there.version == 0 and there.digest() != here.digest()
    there.restore(tmp_path / "theta.safetensors")
    assert (there.digest(), there.version) == (here.digest(), 3)


def test_theta_is_put_into_it_part_by_part(here, checkpoint, device):
    there = Theta.load(checkpoint, SHAPES)
    for name, theta in here.tensors.items():
        there.put(name, 0, theta.view(-1)[:2])
        there.put(name, 2, theta.view(-1)[2:])
    there.finish_put(3)
    assert (there.digest(), there.version) == (here.digest(), 3)


def test_an_update_is_applied_once_and_only_to_its_version(here, checkpoint, device):
    there = updated(checkpoint)
    there.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="correlated", version=2))
    assert there.digest() == here.digest()
    with pytest.raises(JournalError, match="version"):
        there.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1))


@pytest.mark.parametrize(
    "member",
    [Member(1, 1, 1e-3, "iid", 0), Candidate((1,), (1e-3,), "iid", 0)],
    ids=["member", "candidate"],
)
@pytest.mark.parametrize("where", ["on a device", "streamed to one"])
def test_the_weight_that_overflows_is_named(where, member, device, monkeypatch):
    if where == "streamed to one":
        monkeypatch.setattr(kernels, "on_device", lambda kind: None)
        monkeypatch.setattr(kernels, "compiled", lambda kind: True)
    theta = Theta(
        {"fine": torch.ones(9), "w": torch.full((5000,), 70_000.0), "also fine": torch.ones(9)}
    )
    with pytest.raises(ModelError, match=r"^w overflows torch.float16"):
        list(
            theta.perturbed(
                member, lambda name: torch.empty(theta.tensors[name].shape, dtype=torch.float16)
            )
        )


@pytest.mark.parametrize("job", [1 << 10, 1 << 21])
def test_members_that_stream_from_host_memory_have_the_same_bits(checkpoint, monkeypatch, job):
    wanted = bits(updated(checkpoint))
    monkeypatch.setattr(writer, "HOST_JOB", job)
    here = updated(checkpoint, share=True)
    monkeypatch.setattr(kernels, "compiled", lambda kind: True)
    monkeypatch.setattr(here.writer.pool, "map", None)  # nothing of it is done by threads
    assert bits(here) == wanted
    assert len(here.writer.staging) == 1  # whatever the number of members


def test_a_buffer_is_filled_again_only_after_what_reads_it(monkeypatch):
    said: list[str] = []
    module = recording(said)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    staging = Staging(torch.device("cpu"), 4)
    for number in range(3):
        with staging.copied(torch.full((3,), float(number))) as part:
            said.append(f"read {part.tolist()}")
    one, two = "event 1", "event 2"
    each = [(one, 0.0), (two, 1.0), (one, 2.0)]
    wanted = [
        line
        for event, value in each
        for line in (
            f"copies waits for {event}",
            "current waits for copies",
            f"read {[value] * 3}",
            f"{event} recorded in current",
        )
    ]
    assert said == ["copies waits for current", *wanted]


def recording(said: list[str]) -> SimpleNamespace:
    """A device's module that says what is asked of its streams, in order."""

    class Stream:
        def __init__(self, name="copies"):
            self.name = name if isinstance(name, str) else "copies"

        def wait_stream(self, other):
            said.append(f"{self.name} waits for {other.name}")

    class Event:
        made = 0

        def __init__(self):
            Event.made += 1
            self.name = f"event {Event.made}"

        def wait(self, stream):
            said.append(f"{stream.name} waits for {self.name}")

        def record(self, stream):
            said.append(f"{self.name} recorded in {stream.name}")

    @contextmanager
    def stream(which):
        assert which.name == "copies"
        yield

    current = Stream("current")
    return SimpleNamespace(
        Stream=Stream, Event=Event, stream=stream, current_stream=lambda device: current
    )


@pytest.fixture
def cudart(monkeypatch) -> SimpleNamespace:
    fake = SimpleNamespace(status=0, locked={})
    fake.cudaHostRegister = lambda address, size, flags: (
        fake.locked.update({address: size}) or fake.status
    )
    fake.cudaHostUnregister = lambda address: fake.locked.pop(address)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    return fake


def test_shared_theta_is_page_locked_in_one_piece_while_it_lives(cudart):
    shared = SharedTensors.create({"a": (3, 5), "b": (100_000,)})
    assert lock(shared, torch.device("cpu"))
    ((address, size),) = cudart.locked.items()
    assert all(
        address <= t.data_ptr() and t.data_ptr() + t.nbytes <= address + size
        for t in shared.tensors.values()
    )
    del shared
    gc.collect()
    assert cudart.locked == {}


def test_memory_that_cannot_be_locked_is_no_error_but_a_line(cudart, caplog):
    cudart.status = 2
    assert not lock(SharedTensors.create({"a": (3,)}), torch.device("cpu"))
    assert [record.getMessage() for record in caplog.records] == [
        "θ could not be page-locked (CUDA error 2), so that loading a member takes longer"
    ]
