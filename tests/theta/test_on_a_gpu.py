"""θ on a GPU, and members that stream to a GPU, have the same bits as on a CPU.

Each test runs twice: on a GPU, and on CPU tensors in its place, to see that the test itself works.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from device_child import MEMBERS, SHAPES, base, bits, updated

from estune.common.types import Member, ThetaUpdate, Unperturbed
from estune.noise import gaussian, kernels
from estune.noise import torch as by_torch
from estune.theta import writer
from estune.theta.shared_memory import SharedTensors
from estune.theta.streaming import Staging
from estune.theta.theta import Theta

SEEDS = list(range(30))
COEFFICIENTS = [(-1) ** seed * 2.0**-20 * (seed + 1) for seed in SEEDS]  # fp32 numbers
# many programs each, the last one partly filled
LARGE = {"embedding": (1_025, 96), "odd": (211, 257), "bias": (3,)}


@pytest.fixture
def checkpoint(tmp_path):
    return base(tmp_path)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture
def as_a_device(device, monkeypatch) -> Iterator[None]:
    """Without a GPU, treat CPU tensors as a GPU's."""
    with monkeypatch.context() as patch:
        if device == "cpu":
            patch.setattr(kernels, "on_device", lambda kind: by_torch)
            patch.setattr(writer, "DEVICE_JOB", 1 << 12)
        yield


def on(device: str, room: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in room.items()}


def members_on(device: str, theta: Theta) -> dict[str, str]:
    """The same as `device_child.bits`, for members written to tensors on the device."""
    found = {}
    for number, member in enumerate(MEMBERS):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            room = on(
                device,
                {name: torch.full(shape, 7.0, dtype=dtype) for name, shape in SHAPES.items()},
            )
            for name, tensor in theta.perturbed(member, room.__getitem__):
                found[f"{number} {dtype} {name}"] = (
                    tensor.cpu().view(-1).view(torch.uint8).numpy().tobytes().hex()
                )
    return found


def large(device: str, *, share: bool = False) -> Theta:
    generator = torch.Generator().manual_seed(3)
    theta = {name: torch.randn(shape, generator=generator) for name, shape in LARGE.items()}
    shared = SharedTensors.create(LARGE) if share else None
    if shared:
        for name, values in theta.items():
            shared.tensors[name].copy_(values)
    return Theta(shared.tensors if shared else on(device, theta), shared=shared)


@pytest.fixture
def here(checkpoint) -> Theta:
    """θ on the CPU after three updates, made before any stand-in for a GPU is in place."""
    return updated(checkpoint)


@pytest.fixture
def wanted(here) -> tuple[str, dict[str, str]]:
    return here.digest(), bits(here)


def test_theta_and_its_members_have_the_cpus_bits(wanted, checkpoint, device, as_a_device):
    there = updated(checkpoint, device=device)
    assert there.on_device
    assert (there.digest(), members_on(device, there)) == wanted


def test_members_that_stream_from_host_memory_have_the_cpus_bits(
    wanted, checkpoint, device, monkeypatch
):
    if device == "cpu":
        monkeypatch.setattr(kernels, "compiled", lambda kind: True)
    there = updated(checkpoint, share=True)
    assert (there.digest(), members_on(device, there)) == wanted
    assert len(there.writer.staging) == 1  # they did stream


@pytest.mark.parametrize("count", [1, 30])
def test_an_update_of_large_parameters_gives_the_cpus_theta(count, device, as_a_device):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "on_device", lambda kind: None)
        wanted = large("cpu")
        wanted.update(ThetaUpdate(SEEDS[:count], COEFFICIENTS[:count], noise="iid", version=0))
    there = large(device)
    there.update(ThetaUpdate(SEEDS[:count], COEFFICIENTS[:count], noise="iid", version=0))
    assert there.digest() == wanted.digest()


def test_a_large_member_is_the_same_from_theta_on_the_device_and_from_host_memory(
    device, monkeypatch
):
    member = Member(2**64 - 1, -1, 1e-3, "iid", 0)
    empty = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in LARGE.items()}
    rooms = [on(device, copy.deepcopy(empty)) for _ in range(2)]
    if device == "cpu":
        monkeypatch.setattr(kernels, "compiled", lambda kind: True)
    list(large(device, share=True).perturbed(member, rooms[0].__getitem__))
    if device == "cpu":
        monkeypatch.setattr(kernels, "on_device", lambda kind: by_torch)
    list(large(device).perturbed(member, rooms[1].__getitem__))
    assert all(torch.equal(rooms[0][name], rooms[1][name]) for name in LARGE)


def test_a_member_that_is_streamed_while_another_is_written_has_its_own_bits(device, monkeypatch):
    """A buffer must not be refilled before a busy device has read it."""
    if device == "cpu":
        monkeypatch.setattr(kernels, "compiled", lambda kind: True)
    monkeypatch.setattr(writer, "HOST_JOB", 1 << 14)
    theta = large(device, share=True)
    room = on(
        device, {name: torch.zeros(shape, dtype=torch.float32) for name, shape in LARGE.items()}
    )
    if device == "cuda":
        busy = torch.randn(4096, 4096, device=device)
        for _ in range(20):
            busy = busy @ busy / 64
    list(theta.perturbed(Unperturbed(0), room.__getitem__))
    assert all(torch.equal(room[name].cpu(), theta.tensors[name]) for name in LARGE)


def test_theta_in_host_memory_is_page_locked(device):
    if device == "cpu":
        pytest.skip("nothing is page-locked for a CPU")
    shared = SharedTensors.create(LARGE)
    Staging(torch.device(device), 1 << 12, shared)
    assert shared.tensors["odd"].is_pinned()


def test_noise_computed_on_the_device_has_the_references_bits(device):
    backend = "torch" if device == "cpu" else "triton"
    here, wanted = (gaussian(7, "a.b", (3, 1001), backend=name) for name in (backend, "numpy"))
    assert here.tobytes() == wanted.tobytes()
