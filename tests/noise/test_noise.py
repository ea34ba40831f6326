"""ε is what its definition says, and every backend gives the same bits."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
import torch

from estune.errors import ConfigError
from estune.noise import gaussian, kernels, reference, stream, table
from estune.noise import numba as numba_kernels
from estune.noise import torch as torch_backend

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that Random123 ships
        ([0, 0, 0, 0], (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    out = reference.philox(np.array(counter, np.uint64)[:, None], key)[:, 0]
    assert " ".join(f"{int(word):08x}" for word in out) == words


def test_the_table_is_the_published_one():
    assert (
        hashlib.blake2b(table().astype("<f4").tobytes(), digest_size=16).hexdigest()
        == "65561716612ffbcbfd947ed80353b542"
    )
    assert np.mean(table().astype(np.float64) ** 2) == pytest.approx(1, abs=1e-7)


def test_the_first_values_are_those_of_the_definition():
    values = gaussian(7, "model.embed_tokens.weight", (4,))
    assert values.dtype == np.float32
    assert values.tolist() == pytest.approx(
        [-0.35216635, -0.1231456, 0.036860775, -0.6593757], rel=1e-7
    )


def literal_element(seed: int, name: str, i: int) -> float:
    """One element, written out once more from the definition in plain integers."""
    b, t = i // 8, int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    c = [b % 2**32, b // 2**32, t % 2**32, t // 2**32]
    k = [seed % 2**32, seed // 2**32]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second % 2**32,
            (first >> 32) ^ c[3] ^ k[1],
            first % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    word = c[i % 8 // 2]
    half = word >> 16 if i % 2 else word % 2**16
    rms = float(
        np.sqrt(np.mean([NormalDist().inv_cdf((n + 0.5) / 65536) ** 2 for n in range(65536)]))
    )
    return float(np.float32(NormalDist().inv_cdf((half + 0.5) / 65536) / rms))


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, 2**64 - 1])
def test_elements_are_laid_out_as_defined(seed):
    values = gaussian(seed, "a.weight", (24,), backend="numpy")
    assert [float(values[i]) for i in (0, 1, 7, 8, 15, 23)] == [
        literal_element(seed, "a.weight", i) for i in (0, 1, 7, 8, 15, 23)
    ]


@pytest.mark.parametrize("backend", ["auto", "numba", "torch"])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0), (1,), (7,), (8,), (9,), (3, 5, 7), (1000, 33), (4096,), (4097,)]
)
def test_every_backend_equals_the_reference(backend, seed, shape):
    for correlated in (False, True):
        wanted = gaussian(seed, "a.b", shape, backend="numpy", correlated=correlated)
        got = gaussian(seed, "a.b", shape, backend=backend, correlated=correlated)
        assert got.shape == shape
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("start", [0, 1, 5, 8, 4095, 4096, 4099, 8 * 2**32 - 3, 8 * 2**33 + 13])
@pytest.mark.parametrize("size", [0, 1, 3, 8, 4093, 9000])
def test_any_part_of_a_stream_can_be_made_alone(start, size):
    t = 2**64 - 3
    wanted, compiled = np.empty(size, np.float32), np.empty(size, np.float32)
    reference.fill(2**63 + 5, t, start, wanted)
    zeros = np.zeros(size, np.float32)
    place = (np.uint64(2**63 + 5), np.uint64(t), start, table())
    numba_kernels.perturb_float32(zeros, np.float32(1), *place, compiled)
    assert compiled.tobytes() == wanted.tobytes()
    assert torch_backend.noise(2**63 + 5, t, start, size, CPU).numpy().tobytes() == wanted.tobytes()


def test_correlated_noise_is_one_stream_for_all_names_and_iid_noise_is_not():
    assert np.array_equal(
        gaussian(3, "a", (50,), correlated=True), gaussian(3, "b", (50,), correlated=True)
    )
    assert not np.array_equal(gaussian(3, "a", (50,)), gaussian(3, "b", (50,)))
    assert stream("a", correlated=True) == 0


def test_an_element_does_not_depend_on_the_shape():
    assert np.array_equal(gaussian(3, "a", (6, 4)).reshape(-1), gaussian(3, "a", (24,)))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, 7.0, float("nan"), "7", None])
def test_a_seed_that_is_no_unsigned_64_bit_integer_is_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        gaussian(seed, "a", (1,))


@pytest.mark.parametrize("shape", [(-1,), (2.5,), ("3",), "ab", None])
def test_a_shape_that_is_not_made_of_integers_from_zero_on_is_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        gaussian(0, "a", shape)


def test_numpys_integers_and_torchs_sizes_are_integers_too():
    wanted = gaussian(2**64 - 1, "a", (5,))
    assert np.array_equal(gaussian(np.uint64(2**64 - 1), "a", torch.Size([5])), wanted)
    assert np.array_equal(gaussian(2**64 - 1, "a", np.int64(5)), wanted)


def test_an_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"cuda.*numba"):
        gaussian(0, "a", (1,), backend="cuda")


def spread(size: int) -> torch.Tensor:
    """fp32 values over many magnitudes, so that rounding has something to do."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator) * torch.logspace(-6, 2, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("on_device", [False, True], ids=["numba", "torch"])
@pytest.mark.parametrize(("start", "size"), [(0, 10_000), (5, 4099), (4091, 1), (3, 0)])
def test_a_members_weights_are_product_then_sum_then_one_rounding(dtype, on_device, start, size):
    theta, noise = spread(size), np.empty(size, np.float32)
    reference.fill(11, 99, start, noise)
    scale = np.float32(-3e-3)
    wanted = torch.from_numpy(theta.numpy() + scale * noise).to(dtype)
    out = torch.zeros(size, dtype=dtype)
    write = torch_backend.perturb if on_device else kernels.perturb
    assert write(theta, float(scale), 11, 99, start, out)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("on_device", [False, True], ids=["numba", "torch"])
@pytest.mark.parametrize(("start", "size"), [(0, 10_000), (5, 4099), (4091, 1), (3, 0)])
def test_an_update_sums_the_seeds_in_order_in_fp32_and_adds_once(on_device, start, size):
    theta, seeds = spread(size), [3, 2**64 - 1, 0, 3]
    coefficients = [float(np.float32(c)) for c in (1e-3, -2.5e-4, 7e-5, 0.0)]
    delta, noise = np.zeros(size, np.float32), np.empty(size, np.float32)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        reference.fill(seed, 99, start, noise)
        delta = delta + np.float32(coefficient) * noise
    wanted = theta.numpy() + delta
    move = torch_backend.update if on_device else kernels.update
    move(theta, coefficients, seeds, 99, start)
    assert theta.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("on_device", [False, True], ids=["numba", "torch"])
def test_no_product_and_sum_are_fused(on_device):
    """Some element here would round otherwise under a fused multiply-add, and none does."""
    write, size, scale = (
        torch_backend.perturb if on_device else kernels.perturb,
        20_000,
        np.float32(1e-3),
    )
    theta, noise, out = spread(size), np.empty(size, np.float32), torch.zeros(size)
    reference.fill(5, 1, 0, noise)
    fused = (
        theta.numpy().astype(np.float64) + np.float64(scale) * noise.astype(np.float64)
    ).astype(np.float32)
    two_roundings = theta.numpy() + scale * noise
    assert np.any(fused != two_roundings)
    write(theta, float(scale), 5, 1, 0, out)
    assert np.array_equal(out.numpy(), two_roundings)


@pytest.mark.parametrize("on_device", [False, True], ids=["numba", "torch"])
def test_no_product_and_sum_of_an_update_are_fused(on_device):
    """θ is zero, so it ends as the sum over seeds, which a fused multiply-add would change."""
    move, size, seeds = torch_backend.update if on_device else kernels.update, 20_000, [5, 6]
    first, second, theta = np.empty(size, np.float32), np.empty(size, np.float32), torch.zeros(size)
    coefficients = np.array([0.3, -0.7], np.float32)
    reference.fill(5, 1, 0, first)
    reference.fill(6, 1, 0, second)
    so_far = coefficients[0] * first
    fused = (
        so_far.astype(np.float64) + np.float64(coefficients[1]) * second.astype(np.float64)
    ).astype(np.float32)
    two_roundings = so_far + coefficients[1] * second
    assert np.any(fused != two_roundings)
    move(theta, coefficients.tolist(), seeds, 1, 0)
    assert np.array_equal(theta.numpy(), two_roundings)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, 65_530.0), (torch.bfloat16, 3.4e38), (torch.float32, float("inf"))],
)
def test_weights_that_are_not_finite_are_told(dtype, value):
    theta = torch.full((5000,), 1.0)
    out = torch.zeros(5000, dtype=dtype)
    assert kernels.perturb(theta, 1e-3, 1, 1, 0, out)
    for place in (0, 4999):
        broken = theta.clone()
        broken[place] = value
        assert not kernels.perturb(broken, 1e-3, 1, 1, 0, out)
