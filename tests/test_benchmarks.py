"""The benchmarks run, and print the ratios that they promise; their size is nobody's test."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import gpu

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_kernel_benchmark_prints_its_ratios_as_one_json_object():
    command = [sys.executable, "-m", "benchmarks.kernels", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    assert {"perturbed_over_copy", "usual_over_perturbed", "usual_over_update"} <= figures.keys()
    assert all(value > 0 for value in figures.values())


@pytest.mark.slow
def test_the_gpu_benchmark_runs_through_on_a_cpu_and_finds_the_references_bits():
    command = [sys.executable, "-m", "benchmarks.gpu", "--parameters-like", "tiny", "--device", "cpu", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    assert figures["bits_equal"] and figures["update_bits_equal"] and figures["streamed_bits_equal"]
    for name in ("perturbed_of_copy", "update_1_of_copy", "update_30_of_copy", "load_over_bus"):
        assert figures[name] > 0


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_shapes_it_has_for_qwen_are_those_of_the_model_with_7_615_616_512_parameters():
    shapes = gpu.MODELS["qwen2.5-7b"]
    assert (sum(map(math.prod, shapes.values())), len(shapes)) == (7_615_616_512, 339)
