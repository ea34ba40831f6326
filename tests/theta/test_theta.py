"""θ is exact: members are projections of it, updates land in fp32, and nothing else moves it."""

import hashlib

import numpy as np
import pytest
import torch

from estune.common.types import Candidate, Member, ThetaUpdate, Unperturbed
from estune.errors import JournalError, ModelError
from estune.noise import gaussian
from estune.theta.theta import Theta

SHAPES = {
    "b.weight": (300, 70),
    "a.weight": (2_200_003,),
    "norm": (7,),
    "empty": (0, 3),
    "scalar": (),
}
SEEDS = [5, 2**64 - 1, 0]
COEFFICIENTS = [float(np.float32(c)) for c in (1e-3, -3e-4, 2e-5)]


def make(**options) -> Theta:
    generator = torch.Generator().manual_seed(1)
    return Theta(
        {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()},
        **options,
    )


def weights(theta: Theta, member: Member, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return dict(theta.perturbed(member, lambda name: torch.empty(SHAPES[name], dtype=dtype)))


def epsilon(seed: int, name: str, correlated: bool = False) -> torch.Tensor:
    return torch.from_numpy(
        gaussian(seed, name, SHAPES[name], backend="numpy", correlated=correlated)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("noise", ["iid", "correlated"])
def test_a_member_is_theta_plus_sigma_epsilon_rounded_once(dtype, sign, noise):
    theta = make()
    held = weights(theta, Member(9, sign, 1e-3, noise, 0), dtype)
    for name, values in theta.tensors.items():
        product = torch.from_numpy(
            np.asarray(
                np.float32(sign)
                * np.float32(1e-3)
                * epsilon(9, name, noise == "correlated").numpy()
            )
        )
        assert torch.equal(held[name], (values + product).to(dtype)), name


def test_sigma_zero_is_the_centre_itself():
    theta = make()
    held = weights(theta, Unperturbed(0))
    assert all(torch.equal(held[name], values) for name, values in theta.tensors.items())


def test_three_hundred_members_leave_no_trace():
    theta = make()
    before = theta.digest()
    buffers = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    for seed in range(300):
        list(theta.perturbed(Member(seed, 1, 1e-3, "iid", 0), buffers.__getitem__))
    assert theta.digest() == before


@pytest.mark.parametrize("noise", ["iid", "correlated"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_update_is_the_same_to_the_bit_for_any_number_of_threads(noise, threads):
    theta = make(threads=threads)
    wanted = {}
    for name, values in theta.tensors.items():
        delta = np.zeros(SHAPES[name], np.float32)
        for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
            delta = (
                delta + np.float32(coefficient) * epsilon(seed, name, noise == "correlated").numpy()
            )
        wanted[name] = values.numpy() + delta
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise=noise, version=0))
    for name, values in theta.tensors.items():
        assert values.numpy().tobytes() == wanted[name].tobytes(), name


def test_an_update_that_arrives_twice_is_applied_once():
    theta = make()
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=0))
    once = theta.digest()
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=0))
    assert (theta.digest(), theta.version) == (once, 1)


@pytest.mark.parametrize("version", [1, 5, -2])
def test_an_update_from_another_version_is_refused(version):
    with pytest.raises(JournalError, match="version"):
        make().update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=version))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_update_without_one_coefficient_a_seed_is_refused_and_leaves_theta_alone(count):
    theta = make()
    before = theta.digest()
    with pytest.raises(JournalError, match=f"{count} coefficients for 3 seeds"):
        theta.update(ThetaUpdate(SEEDS, [1e-3] * count, noise="iid", version=0))
    assert (theta.digest(), theta.version) == (before, 0)


def test_a_member_of_another_version_is_refused():
    with pytest.raises(ModelError, match="version"):
        weights(make(), Member(1, 1, 0.1, "iid", 1))


def test_an_update_without_coefficients_only_counts():
    theta = make()
    before = theta.digest()
    theta.update(ThetaUpdate(SEEDS, [], noise="iid", version=0))
    assert (theta.digest(), theta.version) == (before, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_its_root_mean_square_is_over_all_weights(threads):
    theta = make(threads=threads)
    whole = torch.cat([tensor.flatten().double() for tensor in theta.tensors.values()])
    assert theta.root_mean_square() == pytest.approx(float(whole.square().mean().sqrt()), rel=1e-12)


def test_the_digest_is_the_published_one():
    theta = make()
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(SHAPES):
        values = theta.tensors[name].numpy().astype("<f4").tobytes()
        whole.update(name.encode() + b"\0" + hashlib.blake2b(values, digest_size=16).digest())
    assert theta.digest() == whole.hexdigest()


def test_weights_that_overflow_the_engines_dtype_are_refused():
    theta = Theta({"w": torch.full((10,), 70_000.0)})
    with pytest.raises(ModelError, match=r"w overflows torch.float16"):
        list(
            theta.perturbed(
                Member(1, 1, 1e-3, "iid", 0), lambda name: torch.empty(10, dtype=torch.float16)
            )
        )


def test_a_snapshot_gives_theta_and_its_version_back(tmp_path):
    theta, other = make(), make()
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=0))
    theta.save(tmp_path / "theta.safetensors")
    other.restore(tmp_path / "theta.safetensors")
    assert (other.digest(), other.version) == (theta.digest(), 1)


@pytest.mark.parametrize(
    "damage", ["cut", "missing parameter", "other shape", "other dtype", "no version", "not there"]
)
def test_a_damaged_snapshot_is_told(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "theta.safetensors"
    theta = make()
    theta.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "missing parameter":
        save_file({"norm": theta.tensors["norm"]}, path, metadata={"version": "0"})
    elif damage == "other shape":  # one that could be broadcast
        save_file(theta.tensors | {"norm": torch.ones(1)}, path, metadata={"version": "0"})
    elif damage == "other dtype":
        save_file(
            {name: values.bfloat16() for name, values in theta.tensors.items()},
            path,
            metadata={"version": "0"},
        )
    elif damage == "no version":
        save_file(theta.tensors, path)
    else:
        path.unlink()
    with pytest.raises(JournalError, match="not a snapshot"):
        theta.restore(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", ["iid", "correlated"])
def test_a_candidate_is_what_the_centre_is_once_its_update_is_made(dtype, noise):
    theta = make()
    held = weights(theta, Candidate(tuple(SEEDS), tuple(COEFFICIENTS), noise, 0), dtype)
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise=noise, version=0))
    after = weights(theta, Unperturbed(1), dtype)
    assert all(torch.equal(held[name], after[name]) for name in held)


def test_a_candidate_that_overflows_is_refused():
    theta = make()
    with pytest.raises(ModelError, match="overflows torch.float16"):
        weights(theta, Candidate((1,), (1e9,), "iid", 0), torch.float16)
