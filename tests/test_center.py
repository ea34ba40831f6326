"""θ is exact: members are projections of it, updates land in fp32, and nothing else moves it."""

import hashlib

import numpy as np
import pytest
import torch

from estune.common.types import Member
from estune.errors import JournalError, ModelError
from estune.noise import gaussian
from estune.theta.theta import Center

SHAPES = {
    "b.weight": (300, 70),
    "a.weight": (2_200_003,),
    "norm": (7,),
    "empty": (0, 3),
    "scalar": (),
}
SEEDS = [5, 2**64 - 1, 0]
COEFFICIENTS = [float(np.float32(c)) for c in (1e-3, -3e-4, 2e-5)]


def make(**options) -> Center:
    generator = torch.Generator().manual_seed(1)
    return Center(
        {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()},
        **options,
    )


def weights(center: Center, member: Member, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {
        n: w
        for n, _, w in center.perturbed(member, lambda name: torch.empty(SHAPES[name], dtype=dtype))
    }


def epsilon(seed: int, name: str, correlated: bool = False) -> torch.Tensor:
    return torch.from_numpy(
        gaussian(seed, name, SHAPES[name], backend="numpy", correlated=correlated)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("noise", ["iid", "correlated"])
def test_a_member_is_theta_plus_sigma_epsilon_rounded_once(dtype, sign, noise):
    center = make()
    held = weights(center, Member(9, sign, 1e-3, noise, 0), dtype)
    for name, theta in center.theta.items():
        product = torch.from_numpy(
            np.asarray(
                np.float32(sign)
                * np.float32(1e-3)
                * epsilon(9, name, noise == "correlated").numpy()
            )
        )
        assert torch.equal(held[name], (theta + product).to(dtype)), name


def test_sigma_zero_is_the_centre_itself():
    center = make()
    held = weights(center, Member(9, 1, 0.0, "iid", 0))
    assert all(torch.equal(held[name], theta) for name, theta in center.theta.items())


def test_perturbed_says_which_part_of_which_parameter_it_gives():
    center = make()
    parts = {
        name: where
        for name, where, _ in center.perturbed(
            Member(1, 1, 0.1, "iid", 0), lambda n: torch.empty(SHAPES[n])
        )
    }
    assert parts == {name: slice(0, theta.numel()) for name, theta in center.theta.items()}


def test_three_hundred_members_leave_no_trace():
    center = make()
    before = center.digest()
    buffers = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    for seed in range(300):
        list(center.perturbed(Member(seed, 1, 1e-3, "iid", 0), buffers.__getitem__))
    assert center.digest() == before


@pytest.mark.parametrize("noise", ["iid", "correlated"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_update_is_the_same_to_the_bit_for_any_number_of_threads(noise, threads):
    center = make(threads=threads)
    wanted = {}
    for name, theta in center.theta.items():
        delta = np.zeros(SHAPES[name], np.float32)
        for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
            delta = (
                delta + np.float32(coefficient) * epsilon(seed, name, noise == "correlated").numpy()
            )
        wanted[name] = theta.numpy() + delta
    center.update(SEEDS, COEFFICIENTS, noise=noise, version=0)
    for name, theta in center.theta.items():
        assert theta.numpy().tobytes() == wanted[name].tobytes(), name


def test_an_update_that_arrives_twice_is_applied_once():
    center = make()
    center.update(SEEDS, COEFFICIENTS, noise="iid", version=0)
    once = center.digest()
    center.update(SEEDS, COEFFICIENTS, noise="iid", version=0)
    assert (center.digest(), center.version) == (once, 1)


@pytest.mark.parametrize("version", [1, 5, -2])
def test_an_update_from_another_version_is_refused(version):
    with pytest.raises(JournalError, match="version"):
        make().update(SEEDS, COEFFICIENTS, noise="iid", version=version)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_update_without_one_coefficient_a_seed_is_refused_and_leaves_theta_alone(count):
    center = make()
    before = center.digest()
    with pytest.raises(JournalError, match=f"{count} coefficients for 3 seeds"):
        center.update(SEEDS, [1e-3] * count, noise="iid", version=0)
    assert (center.digest(), center.version) == (before, 0)


def test_a_member_of_another_version_is_refused():
    with pytest.raises(ModelError, match="version"):
        weights(make(), Member(1, 1, 0.1, "iid", 1))


def test_an_update_without_coefficients_only_counts():
    center = make()
    before = center.digest()
    center.update(SEEDS, [], noise="iid", version=0)
    assert (center.digest(), center.version) == (before, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_its_root_mean_square_is_over_all_weights(threads):
    center = make(threads=threads)
    whole = torch.cat([theta.flatten().double() for theta in center.theta.values()])
    assert center.root_mean_square() == pytest.approx(
        float(whole.square().mean().sqrt()), rel=1e-12
    )


def test_the_digest_is_the_published_one():
    center = make()
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(SHAPES):
        values = center.theta[name].numpy().astype("<f4").tobytes()
        whole.update(name.encode() + b"\0" + hashlib.blake2b(values, digest_size=16).digest())
    assert center.digest() == whole.hexdigest()


def test_weights_that_overflow_the_engines_dtype_are_refused():
    center = Center({"w": torch.full((10,), 70_000.0)})
    with pytest.raises(ModelError, match=r"w overflows torch.float16"):
        list(
            center.perturbed(
                Member(1, 1, 1e-3, "iid", 0), lambda name: torch.empty(10, dtype=torch.float16)
            )
        )


def test_a_snapshot_gives_theta_and_its_version_back(tmp_path):
    center, other = make(), make()
    center.update(SEEDS, COEFFICIENTS, noise="iid", version=0)
    center.save(tmp_path / "theta.safetensors")
    other.restore(tmp_path / "theta.safetensors")
    assert (other.digest(), other.version) == (center.digest(), 1)


@pytest.mark.parametrize(
    "damage", ["cut", "missing parameter", "other shape", "other dtype", "no version", "not there"]
)
def test_a_damaged_snapshot_is_told(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "theta.safetensors"
    center = make()
    center.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "missing parameter":
        save_file({"norm": center.theta["norm"]}, path, metadata={"version": "0"})
    elif damage == "other shape":  # one that could be broadcast
        save_file(center.theta | {"norm": torch.ones(1)}, path, metadata={"version": "0"})
    elif damage == "other dtype":
        save_file(
            {name: theta.bfloat16() for name, theta in center.theta.items()},
            path,
            metadata={"version": "0"},
        )
    elif damage == "no version":
        save_file(center.theta, path)
    else:
        path.unlink()
    with pytest.raises(JournalError, match="not a snapshot"):
        center.restore(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("noise", ["iid", "correlated"])
def test_a_candidate_is_what_the_centre_is_once_its_update_is_made(dtype, noise):
    center = make()
    held = weights(center, Member.candidate(SEEDS, COEFFICIENTS, noise, 0), dtype)
    center.update(SEEDS, COEFFICIENTS, noise=noise, version=0)
    after = weights(center, Member.center(noise, 1), dtype)
    assert all(torch.equal(held[name], after[name]) for name in held)


def test_a_candidate_that_overflows_is_refused():
    center = make()
    with pytest.raises(ModelError, match="overflows torch.float16"):
        weights(center, Member.candidate([1], [1e9], "iid", 0), torch.float16)
