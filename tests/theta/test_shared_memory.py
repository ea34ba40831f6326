"""Processes share one θ in shared memory.

Each process sees whole updates only, and nobody attaches to the memory of another run.
"""

import dataclasses
import subprocess
import sys

import pytest
import torch

from estune.common.types import Member, ThetaUpdate
from estune.errors import EngineError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.shared_memory import Address, SharedTensors
from estune.theta.theta import Theta

SHAPES = {"a": (3, 5), "empty": (0, 2), "scalar": (), "b": (17,)}


def digest_elsewhere(address: Address) -> str:
    """θ's digest as another process finds it."""
    imports = "from estune.theta.theta import Theta; from estune.theta.shared_memory import Address"
    code = f"{imports}; print(Theta.attach({address!r}).digest())"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def theta(tiny) -> Theta:
    checkpoint = open_checkpoint(tiny)
    return Theta.load(checkpoint, layout(checkpoint).in_model, share=True)


def test_every_shape_has_a_place_of_its_own():
    shared = SharedTensors.create(SHAPES)
    for number, tensor in enumerate(shared.tensors.values()):
        tensor.fill_(number)
    assert {
        name: (tuple(t.shape), t.unique().tolist())
        for name, t in SharedTensors(shared.address).tensors.items()
    } == {
        "a": ((3, 5), [0.0]),
        "empty": ((0, 2), []),
        "scalar": ((), [2.0]),
        "b": ((17,), [3.0]),
    }


def test_another_process_sees_theta_and_its_updates(theta):
    assert digest_elsewhere(theta.address) == theta.digest()
    theta.update(ThetaUpdate([5, 6], [0.25, -0.5], noise="iid", version=0))
    assert digest_elsewhere(theta.address) == theta.digest()


def test_who_attached_sees_the_version_move_and_writes_the_same_members(theta):
    other = Theta.attach(theta.address)
    theta.update(ThetaUpdate([5, 6], [0.25, -0.5], noise="iid", version=0))
    assert other.version == 1
    member = Member(9, -1, 0.01, "iid", 1)
    for (name, mine), (_, theirs) in zip(
        theta.perturbed(member, lambda name: torch.empty(theta.tensors[name].shape)),
        other.perturbed(member, lambda name: torch.empty(theta.tensors[name].shape)),
        strict=True,
    ):
        assert torch.equal(mine, theirs), name


def test_a_theta_that_is_half_written_is_not_used(theta):
    other = Theta.attach(theta.address)
    theta.put("model.norm.weight", 0, torch.zeros(4))
    assert not other.at(0)
    with pytest.raises(EngineError, match="half written"):
        next(
            other.perturbed(
                Member(1, 1, 0.1, "iid", 0), lambda name: torch.empty(other.tensors[name].shape)
            )
        )
    theta.finish_put(0)
    assert other.at(0)


def test_memory_that_is_gone_or_somebody_elses_is_refused(theta):
    address = theta.address
    with pytest.raises(EngineError, match="another θ"):
        Theta.attach(dataclasses.replace(address, token=address.token + 1))
    with pytest.raises(EngineError, match="is not on this machine"):
        Theta.attach(dataclasses.replace(address, path="/proc/1/fd/999999"))
    with pytest.raises(EngineError, match="is not on this machine"):
        Theta.attach(dataclasses.replace(address, shapes={"other": (1,)}))


def test_the_memory_outlives_its_owner_for_those_that_attached():
    shared = SharedTensors.create(SHAPES)
    shared.tensors["b"].fill_(7.0)
    address = shared.address
    other = SharedTensors(address)
    del shared
    assert other.tensors["b"].unique().tolist() == [7.0]
    with pytest.raises(EngineError):
        SharedTensors(address)
