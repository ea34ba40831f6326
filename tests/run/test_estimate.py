"""`estune plan` predicts the memory of real runs, and computes time and price from its inputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GGUF, make_family, make_model

from estune.cli.main import main
from estune.config import ESConfig
from estune.run import estimate
from estune.run.estimate import Shape, Speed, Workload

CHILD = Path(__file__).parent / "peak_child.py"
SMALL_CACHE = {
    "engine": "vllm",
    "vllm_enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 1 << 29},
}


def peak_of(model: Path, output: Path, settings: dict) -> int:
    command = [sys.executable, str(CHILD), str(model), str(output), json.dumps(settings)]
    done = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert "PEAK" in done.stdout, done.stderr[-2000:]
    return int(done.stdout.split("PEAK")[1].split()[0])


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """Some 200 million random parameters, stored in bf16."""
    shape = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    folder = tmp_path_factory.mktemp("random")
    return make_model(
        folder,
        dtype="bfloat16",
        vocab_size=32_000,
        initializer_range=0.02,
        max_position_embeddings=1024,
        **shape,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("real", {"max_completion_length": 24}),
        ("random", {"max_completion_length": 24, "dtype": "float32"}),
        pytest.param("real", {"max_completion_length": 24} | SMALL_CACHE, marks=pytest.mark.vllm),
        pytest.param("random", {"max_completion_length": 24} | SMALL_CACHE, marks=pytest.mark.vllm),
    ],
    ids=["transformers-real", "fp32-random", "vllm-real", "vllm-random"],
)
def test_the_memory_that_is_predicted_is_what_a_real_run_takes_within_15_percent(
    which, settings, random_model, tmp_path
):
    model = GGUF if which == "real" else random_model
    config = ESConfig(output_dir=str(tmp_path), **settings)
    itemsize = 4 if config.dtype == "float32" else 2
    predicted = sum(
        estimate.es_on_cpu(
            estimate.shape_of(str(model), config), config, Workload(32, 50, 24), itemsize
        ).values()
    )
    assert predicted == pytest.approx(
        peak_of(model, tmp_path / "out", {"prompts": 32} | settings), rel=0.15
    )


def test_a_models_shape_is_read_from_its_config_alone(tiny, tmp_path):
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    wanted = Shape(
        parameters=17_568, tuned=17_568, layers=2, width=32, cached=32, vocabulary=64, stored=4
    )
    assert (
        estimate.shape_of(str(tmp_path / "config.json"), ESConfig())
        == estimate.shape_of(str(tiny), ESConfig())
        == wanted
    )
    assert estimate.shape_of(str(tiny), ESConfig(target_parameters=["norm"])).tuned == 5 * 32


def test_a_mixtures_parts_are_counted_by_the_names_in_its_files(tmp_path):
    folder = make_family(tmp_path / "moe", "mixtral")
    assert estimate.shape_of(str(folder), ESConfig()).parts == {
        "routers": 2 * 8 * 128,
        "self_attn": 2 * 3 * 128 * 128,
    }
    one = ESConfig(target_parameters=[r"block_sparse_moe\.experts\.7\.w1"])
    assert estimate.shape_of(str(folder), one).tuned == 2 * 96 * 128


@pytest.mark.parametrize(("parameters", "layers", "width"), [(7e9, 33, 4096), (70e9, 71, 9216)])
def test_an_imagined_model_has_the_proportions_of_real_ones(parameters, layers, width):
    shape = estimate.shape_like(parameters)
    assert (shape.layers, shape.width) == (
        pytest.approx(layers, rel=0.1),
        pytest.approx(width, rel=0.1),
    )


def test_the_papers_table_for_eight_billion_parameters():
    """ES: 18 to 22 GB. RL: 136 to 160 GB (gradients 32, Adam 64, reference model 16)."""
    shape, work = estimate.shape_like(8e9), Workload(32, 128, 256)
    rl = estimate.rl(shape, work, 2)
    assert {name: round(size / 1e9) for name, size in rl.items() if name != "activations"} == {
        "weights": 16,
        "gradients, fp32": 32,
        "Adam, fp32": 64,
        "reference model": 16,
    }
    assert 136e9 <= sum(rl.values()) <= 160e9
    device, host = estimate.es_on_gpu(shape, ESConfig(max_completion_length=256), work, 2)
    assert 18e9 <= sum(device.values()) <= 22e9
    assert host["θ, fp32"] == 32e9


def test_more_engines_take_less_time_and_auto_evaluates_two_more():
    work, speed = Workload(10, 1, 50.0), Speed(100.0, 0.1)
    assert estimate.seconds_per_step(ESConfig(population_size=4), work, speed, 1) == pytest.approx(
        4 * 10 * 50 / 100 * 1.1
    )
    assert estimate.seconds_per_step(ESConfig(population_size=4), work, speed, 2) == pytest.approx(
        4 * 10 * 50 / 200 * 1.1
    )
    assert (
        estimate.tokens_per_step(ESConfig(population_size=4, learning_rate="auto"), work)
        == 6 * 10 * 50
    )


def run_of(engines):
    """Return metrics of steps: each engine generates for 80 s, loads for 8 s, and waits 12 s."""
    step = {
        "step_time": 100.0,
        "es/generate_seconds": 80.0 * engines,
        "es/load_seconds": 8.0 * engines,
        "es/update_seconds": 12.0,
    }
    step |= {"completions/mean_length": 50.0, "es/tokens_per_second": 4000 * engines / 88}
    return [step | {"num_tokens": 4000 * engines * number} for number in (1, 2, 3)]


@pytest.mark.parametrize("engines", [1, 4])
def test_a_measured_run_is_predicted_to_take_as_long_as_it_did_with_as_many_engines(engines):
    speed, length = estimate.measured_speed(run_of(engines))
    work = Workload(10, 1, length)
    assert estimate.seconds_per_step(
        ESConfig(population_size=8 * engines), work, speed, engines
    ) == pytest.approx(100)


def test_a_model_without_attention_is_planned_for_too(tmp_path):
    config = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = estimate.shape_of(str(tmp_path / "config.json"), ESConfig())
    assert (shape.layers, shape.cached) == (2, 0)


def test_a_speed_is_taken_from_a_run(tiny, tmp_path, capsys):
    words = [
        "--task",
        "conciseness",
        "--max_train_samples",
        "4",
        "--max_completion_length",
        "6",
        "--population_size",
        "2",
        "--max_steps",
        "3",
    ]
    assert (
        main(
            [
                "train",
                "--model_name_or_path",
                str(tiny),
                *words,
                "--output_dir",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert (
        main(
            [
                "plan",
                "--model_name_or_path",
                str(tiny),
                *words,
                "--measured",
                str(tmp_path / "run"),
                "--price",
                "2",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "17,568 parameters, all tuned; engine transformers in" in shown
    assert "3 steps:" in shown
    assert "price" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said", "in_host_memory"),
    [
        (["--gpus", "1"], "θ is on cuda: 26.1 GiB for θ", False),
        (
            ["--gpus", "1", "--gpu_memory", "40"],
            "θ is in host memory, because cuda has 37.3 GiB free",
            True,
        ),
        (
            ["--gpus", "1", "--engine", "vllm"],
            "because cuda has 74.5 GiB free, less than 26.1 GiB for θ, 68.5 GiB",
            True,
        ),
        (
            ["--gpus", "1", "--engine", "vllm", "--vllm_gpu_memory_utilization", "0.6"],
            "θ is on cuda",
            False,
        ),
        (["--gpus", "1", "--center_device", "cpu"], "", True),
        (["--gpus", "2"], "", True),
    ],
)
def test_it_tells_where_theta_would_be(words, said, in_host_memory, capsys):
    assert (
        main(
            [
                "plan",
                "--parameters",
                "7e9",
                "--max_completion_length",
                "256",
                "--prompts",
                "16",
                *words,
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert said in shown and ("θ is" in shown) == bool(said)
    assert ("in the machine's memory: θ, fp32 26.1 GiB" in shown) == in_host_memory


def test_a_model_that_does_not_fit_is_told(tiny, capsys):
    assert (
        main(
            [
                "plan",
                "--parameters",
                "400e9",
                "--gpus",
                "1",
                "--gpu_memory",
                "80",
                "--tokens_per_second",
                "10",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "ES does not fit: it takes" in shown
    assert "choose more GPUs" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model_name_or_path: give a hub id"),
        (["--parameters", "-1"], "parameters: must be a number above 0"),
        (["--parameters", "nan"], "parameters: must be a number above 0"),
        (["--parameters", "7e9", "--gpus", "-2"], "gpus: must be a multiple"),
        (
            [
                "--parameters",
                "7e9",
                "--gpus",
                "3",
                "--engine",
                "vllm",
                "--vllm_tensor_parallel_size",
                "2",
            ],
            "gpus: must be a multiple",
        ),
        (
            ["--parameters", "7e9", "--measured", "nowhere"],
            "measured: nowhere has no metrics.jsonl",
        ),
        (
            ["--parameters", "7e9", "--measured", "x", "--tokens_per_second", "3"],
            "measured: the run gives the speed",
        ),
        (["--parameters", "7e9", "--price", "0"], "price: must be"),
        (["--model_name_or_path", "./nowhere"], "nowhere: no such folder"),
        (["--parameter", "7e9"], "did you mean 'parameters'"),
    ],
)
def test_wrong_input_is_one_line(words, message, capsys):
    assert main(["plan", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
