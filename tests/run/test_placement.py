"""θ goes to the engine's GPU if both fit there, else to host memory. These tests need no GPU."""

import pytest
import torch

from estune import ESConfig
from estune.cli.main import main
from estune.engines.device import engine_device
from estune.errors import ConfigError, InputError, ResourceError
from estune.run import placement
from estune.run.model import Model
from estune.run.placement import RESERVE, Placement, choose, place_theta, vllm_bytes

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch) -> None:
    """A machine with one GPU of 80 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(placement, "find_spec", lambda name: True)


def placed(config, theta=GIB, engine=GIB):
    return place_theta(config, engine_device(config), theta, lambda: engine)


@pytest.mark.parametrize(("spare", "device"), [(0, "cuda:1"), (-1, "cpu")])
def test_it_goes_to_the_gpu_where_it_fits_to_the_byte(spare, device):
    assert choose("auto", 28 * GIB, 20 * GIB, 48 * GIB + RESERVE + spare, "cuda:1").device == device


def test_the_reason_has_all_sizes():
    needs = "28.0 GiB for θ, 20.0 GiB for the engine and 2.0 GiB in reserve"
    assert (
        choose("auto", 28 * GIB, 20 * GIB, 79 * GIB, "cuda").why
        == f"θ is on cuda: {needs} fit into the free 79.0 GiB"
    )
    assert (
        choose("auto", 28 * GIB, 20 * GIB, 40 * GIB, "cuda").why
        == f"θ is in host memory, because cuda has 40.0 GiB free, less than {needs}"
    )


def test_where_it_does_not_fit_but_has_to_it_is_refused():
    with pytest.raises(
        ResourceError,
        match=r"center_device: θ does not fit: cuda has 40.0 GiB free, less than .* choose",
    ):
        choose("cuda", 28 * GIB, 20 * GIB, 40 * GIB, "cuda")


def test_without_a_gpu_it_is_in_host_memory_and_nothing_is_said_unless_it_was_asked_for():
    assert placed(ESConfig(device="cpu")) == Placement("cpu")
    assert placed(ESConfig(device="cpu", center_device="cpu")) == Placement(
        "cpu", "θ is in host memory, as center_device says"
    )


OTHERS = [
    ({"workers": "ray"}, "workers: ray runs engines in processes that read θ"),
    ({"workers": "accelerate"}, "workers: accelerate runs engines in processes"),
    (
        {"engine": "vllm", "vllm_tensor_parallel_size": 2},
        "vllm_tensor_parallel_size starts processes that read θ from host memory",
    ),
    ({"engine": "fake"}, r"the engine is not on a GPU \(engine: fake"),
    ({"device": "cpu"}, r"the engine is not on a GPU \(engine: transformers, device: cpu"),
    ({"device": "cuda:1"}, "this machine has no cuda:1"),
]


@pytest.mark.parametrize(("settings", "reason"), OTHERS)
def test_on_a_machine_with_a_gpu_that_theta_cannot_be_on_auto_says_why_and_cuda_is_refused(
    settings, reason, gpu
):
    settings = {"device": "cuda"} | settings
    found = placed(ESConfig(**settings))
    assert found.device == "cpu"
    assert found.why.startswith("θ is in host memory, because " + reason.replace("\\", ""))
    with pytest.raises(
        ConfigError,
        match=f"^center_device: θ cannot be on a GPU, because {reason}.*; choose auto or cpu$",
    ):
        placed(ESConfig(center_device="cuda", **settings))


def test_without_triton_or_with_vllm_in_another_process_it_stays_in_host_memory(gpu, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    assert "another process" in placed(ESConfig(device="cuda", engine="vllm")).why
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    assert "Triton" in placed(ESConfig(device="cuda")).why


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({}, 0.92),
        ({"vllm_gpu_memory_utilization": 0.5}, 0.5),
        ({"engine_kwargs": {"gpu_memory_utilization": 0.3}}, 0.3),
    ],
)
def test_of_vllm_its_part_of_the_gpu_counts_weights_and_cache_together(
    settings, part, gpu, monkeypatch
):
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    config = ESConfig(engine="vllm", device="cuda", **settings)
    room = 79 * GIB - RESERVE - vllm_bytes(config, 80 * GIB)
    assert vllm_bytes(config, 80 * GIB) == int(part * 80 * GIB)
    assert [placed(config, theta, 0).device for theta in (room, room + 1)] == [
        "cuda",
        "cpu",
    ]


def test_a_model_reckons_what_transformers_will_take_before_it_loads_anything(gpu, tiny):
    def model(**settings):
        return Model(
            str(tiny),
            ESConfig(device="cuda", **settings),
            None,
            {"train_dataset": ["what is blue"] * 3},
        )

    assert model().placement.device == "cuda"
    small, large = model(max_completion_length=16), model(max_completion_length=1000)
    assert (
        large._gpu_bytes() - small._gpu_bytes() == 2 * 2 * 32 * 984 * 64
    )  # bf16 × layers × cached × tokens × batch


def test_in_host_memory_beside_an_engine_on_a_gpu_it_is_in_one_piece_which_can_be_page_locked(
    gpu, tiny
):
    there, here = (
        Model(str(tiny), ESConfig(device=device, center_device="cpu"), None, {})
        for device in ("cuda", "cpu")
    )
    assert there.theta.address and not here.theta.address
    assert not there.theta.on_device


@pytest.mark.parametrize(
    "words",
    [
        ["--center_device", "cuda"],
        ["--center_device", "gpu"],
        ["--center_device", "cuda", "--workers", "ray"],
    ],
)
def test_what_cannot_be_is_one_line_and_exit_status_2(words, tiny, tmp_path, capsys):
    place = [
        "--task",
        "conciseness",
        "--max_train_samples",
        "2",
        "--device",
        "cpu",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["train", "--model_name_or_path", str(tiny), *place, *words]) == 2
    errors = capsys.readouterr().err
    assert "center_device: " in errors
    assert errors.count("\n") == 1


def test_a_run_says_where_theta_is_when_that_was_set_and_may_change_it_on_resume(
    make_trainer, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    make_trainer(max_steps=1).train()
    assert "host memory" not in capsys.readouterr().out
    make_trainer(max_steps=2, center_device="cpu").train(resume_from_checkpoint=True)
    assert "θ is in host memory, as center_device says" in capsys.readouterr().out


def test_refusals_are_the_users_to_mend():
    assert issubclass(ResourceError, InputError) and issubclass(ConfigError, InputError)
