"""The Triton kernels compute the reference's bits: in Triton's interpreter, and on a GPU if any."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton_child
from helpers import triton_environment

from estune.noise import gaussian, reference

CHILD = Path(__file__).parent / "triton_child.py"
pytestmark = pytest.mark.slow


def child(*words: str, interpret: bool) -> str:
    command = [sys.executable, str(CHILD), *words]
    done = subprocess.run(
        command,
        env=triton_environment(interpret=interpret),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(
    scope="module", params=["interpreted", pytest.param("compiled", marks=pytest.mark.gpu)]
)
def computed(request, tmp_path_factory) -> dict[str, np.ndarray]:
    file = tmp_path_factory.mktemp("triton") / "bits.npz"
    child("bits", str(file), interpret=request.param == "interpreted")
    return dict(np.load(file))


def noise(seed: int, start: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    reference.fill(seed, triton_child.T, start, out)
    return out


def test_members_have_the_references_bits_in_every_dtype(computed):
    for start in triton_child.STARTS:
        for size in triton_child.SIZES:
            exact = triton_child.theta(size) + np.float32(triton_child.SIGMA) * noise(
                triton_child.SEEDS[3], start, size
            )
            for name, dtype in triton_child.DTYPES.items():
                wanted = torch.tensor(exact).to(dtype).float().numpy()
                assert computed[f"perturb {name} {start} {size}"].tobytes() == wanted.tobytes(), (
                    name,
                    start,
                    size,
                )


def test_updates_add_the_seeds_in_their_order_to_the_references_bits(computed):
    for start in triton_child.STARTS:
        for size in triton_child.SIZES:
            delta = np.zeros(size, np.float32)
            for seed, coefficient in zip(
                triton_child.SEEDS, triton_child.COEFFICIENTS, strict=True
            ):
                delta = delta + np.float32(coefficient) * noise(seed, start, size)
            assert (
                computed[f"update {start} {size}"].tobytes()
                == (triton_child.theta(size) + delta).tobytes()
            ), (start, size)


def test_a_weight_that_overflows_is_noticed(computed):
    for name in triton_child.DTYPES:
        assert computed[f"finite {name}"].tolist() == [True, False]


def test_no_product_is_fused_with_a_sum_in_what_is_compiled_for_a_gpu():
    for kernel, (launched, fused) in json.loads(child("assembly", interpret=False)).items():
        assert launched == 0, kernel
        assert fused > 0, kernel  # so they would have been seen


def test_the_backend_can_be_asked_for_by_name(tmp_path):
    code = """
import sys
import numpy as np
from estune.noise import gaussian
np.save(sys.argv[1], gaussian(7, "a.b", (3, 1001), backend="triton"))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
    subprocess.run(command, env=triton_environment(interpret=True), check=True, timeout=100)
    assert np.load(tmp_path / "a.npy").tobytes() == gaussian(7, "a.b", (3, 1001)).tobytes()


def test_without_triton_or_without_a_gpu_it_is_refused_in_one_line(tmp_path):
    code = "from estune.noise import gaussian; gaussian(0, 'a', (1,), backend='triton')"
    with_it, without = (
        triton_environment(interpret=False) | {"CUDA_VISIBLE_DEVICES": ""},
        os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    (tmp_path / "triton.py").write_text("raise ImportError")
    for place, message in (
        (with_it, "there is no GPU here; choose auto"),
        (without, "it is not installed"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env=place, capture_output=True, text=True, timeout=100
        )
        assert done.stderr.splitlines()[-1].startswith(
            "estune.errors.ConfigError: noise backend 'triton': " + message
        )
