"""The stream looks like independent standard normal numbers.

Bounds are about five standard errors, for fixed seeds.
"""

import numpy as np
import pytest

from estune.noise import gaussian
from estune.noise.reference import philox

N = 1 << 21


@pytest.fixture(scope="module")
def noise():
    return gaussian(12345, "model.layers.0.mlp.up_proj.weight", (N,)).astype(np.float64)


def correlation(a, b):
    return float(np.mean(a * b))


def test_mean_variance_skew_and_kurtosis_are_those_of_a_normal(noise):
    assert abs(noise.mean()) < 5 / np.sqrt(N)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / N)
    assert abs(np.mean(noise**3)) < 5 * np.sqrt(15 / N)
    assert (
        abs(np.mean(noise**4) - 3) < 5 * np.sqrt(96 / N) + 2e-3
    )  # the table ends at 4.3, which costs a little


@pytest.mark.parametrize("seed", [12346, 12344, 0, 12345 + 2**32, 2**64 - 1])
def test_seeds_share_nothing(noise, seed):
    other = gaussian(seed, "model.layers.0.mlp.up_proj.weight", (N,))
    assert abs(correlation(noise, other)) < 5 / np.sqrt(N)


def test_tensors_of_one_shape_share_nothing(noise):
    other = gaussian(12345, "model.layers.1.mlp.up_proj.weight", (N,))
    assert abs(correlation(noise, other)) < 5 / np.sqrt(N)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 9, 16, 576, 4096])
def test_neighbours_share_nothing(noise, lag):
    assert abs(correlation(noise[:-lag], noise[lag:])) < 5 / np.sqrt(N)
    assert abs(correlation(noise[:-lag] ** 2 - 1, noise[lag:] ** 2 - 1)) < 5 * 2 / np.sqrt(N)


def test_every_bit_is_as_often_one_as_zero():
    blocks = np.arange(1 << 18, dtype=np.uint64)
    zero = np.zeros_like(blocks)
    words = philox(np.stack([blocks, zero, zero + np.uint64(5), zero]), (7, 9)).reshape(-1)
    for bit in range(32):
        ones = int(np.count_nonzero(words >> np.uint64(bit) & np.uint64(1)))
        assert abs(ones - words.size / 2) < 5 * np.sqrt(words.size) / 2


def test_values_fall_evenly_into_the_quantiles(noise):
    from scipy.stats import norm

    counts, _ = np.histogram(noise, bins=norm.ppf(np.linspace(0, 1, 257)))
    chi_square = float(np.sum((counts - N / 256) ** 2 / (N / 256)))
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
