"""The seven implementation innovations of "Evolution Strategies at Scale", one test each."""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from estune import strategy
from estune.common.types import Member, ThetaUpdate
from estune.config import ESConfig
from estune.engines.transformers import open_engine
from estune.noise import gaussian
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

CONFIG = ESConfig(population_size=30)


def peak_memory() -> int:
    """Return this process's peak memory in bytes, with torch's, which tracemalloc does not see."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return 1024 * int(line.split()[1])


def fresh_peak_memory() -> int:
    """Reset `peak_memory` to the memory in use now, and return it.

    Freed memory goes back to the system first. Otherwise it would hide new allocations.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def test_innovation_1_seed_based_noise_storage():
    """A population is thirty integers, 240 bytes, from which its noise can be had again."""
    seeds = strategy.ask(CONFIG, 1)
    assert np.array(seeds, np.uint64).nbytes == 240
    assert gaussian(seeds[0], "w", (50,)).tobytes() == gaussian(seeds[0], "w", (50,)).tobytes()


@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process's memory is read from /proc"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_innovation_2_layer_level_perturbation(dtype):
    """A member is written into the engine's weights, with no other buffer of the model's size."""
    layers, size = 32, 1 << 20  # θ takes 128 MiB
    theta = Theta({f"layer.{i}": torch.ones(size) for i in range(layers)}, threads=1)
    weights = {name: torch.ones(size, dtype=dtype) for name in theta.tensors}
    list(
        Theta({"w": torch.zeros(9)}).perturbed(
            Member(1, 1, 1e-3, "iid", 0), lambda name: torch.ones(9, dtype=dtype)
        )
    )  # compiles
    before = fresh_peak_memory()
    for name, tensor in theta.perturbed(Member(2, 1, 1e-3, "iid", 0), weights.__getitem__):
        assert tensor.data_ptr() == weights[name].data_ptr()
    assert peak_memory() - before < layers * size * dtype.itemsize / 2


def test_innovation_3_decomposed_parameter_update():
    """θ ← θ + α/N Σ R̃ₙ εₙ, layer by layer and seed by seed, equals the whole sum."""
    theta = Theta({"a": torch.zeros(40), "b": torch.zeros(3, 5)})
    seeds, coefficients = [3, 4, 5], [0.25, -0.5, 0.125]
    theta.update(ThetaUpdate(seeds, coefficients, noise="iid", version=0))
    for name, values in theta.tensors.items():
        whole = sum(
            c * gaussian(s, name, tuple(values.shape)).astype(np.float64)
            for s, c in zip(seeds, coefficients, strict=True)
        )
        assert values.numpy() == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_innovation_4_z_score_reward_normalisation():
    """Coefficients have mean 0 and a spread of α/N, whatever the scale of the rewards."""
    fitness = np.random.default_rng(0).normal(1e6, 1e3, 30)
    coefficients = np.array(strategy.tell(CONFIG, fitness))
    assert coefficients.mean() == pytest.approx(0, abs=1e-9)
    assert coefficients.std() == pytest.approx(CONFIG.alpha / 30, rel=1e-5)


def test_innovation_5_greedy_decoding(tmp_path):
    """Decoding is greedy even if the model's settings ask for sampling and a repetition penalty."""
    from helpers import make_model
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "sampling")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "top_k": 0, "repetition_penalty": 3.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(folder)
    engine = open_engine(folder, layout(checkpoint), ESConfig(), "cpu", torch.float32)
    first, second = (
        engine.generate(["what is the color of"], max_completion_length=8) for _ in range(2)
    )
    assert first == second
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([engine._tokenizer.encode(["what is the color of"])[0]])
    for token in first[0].ids:
        with torch.no_grad():
            assert int(model(ids).logits[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_innovation_6_parallel_evaluation():
    """Replicas exchange only fitness and stay equal, in whatever order members are evaluated."""
    seeds = strategy.ask(CONFIG, 1)
    fitness = np.full(30, np.nan)
    for index in np.random.default_rng(0).permutation(30):
        fitness[index] = float(seeds[index] % 1000)
    coefficients = strategy.tell(CONFIG, fitness)
    here, there = (
        Theta({"w": torch.ones(1000)}, threads=1),
        Theta({"w": torch.ones(1000)}, threads=3),
    )
    for replica in (here, there):
        replica.update(
            ThetaUpdate(seeds, json.loads(json.dumps(coefficients)), noise="iid", version=0)
        )
    assert here.digest() == there.digest()


def test_innovation_7_learning_rate_digestion():
    """σ does not divide the update; α defaults to σ/2, the paper's 5e-4 at its σ of 1e-3."""
    fitness = np.arange(30.0)
    assert ESConfig().alpha == 5e-4
    assert ESConfig(sigma=0.02).alpha == 0.01
    same = [
        strategy.tell(ESConfig(sigma=sigma, learning_rate=1e-3), fitness) for sigma in (1e-3, 1e-1)
    ]
    assert same[0] == same[1]
