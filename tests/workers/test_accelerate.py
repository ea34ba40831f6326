"""Processes that torchrun or accelerate starts compute one θ: real launchers, real processes."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model
from launching import BIN, finish, launch, reports, torchrun

import estune.workers.launched_process as module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHILD = str(Path(__file__).parent / "launched_child.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> dict[str, Any]:
    """What a process that nobody launched has after four steps."""
    out = tmp_path_factory.mktemp("alone")
    finish(launch([sys.executable], CHILD, model, out, 4, '{"workers": "local"}'))
    return reports(out)[0]


ACCELERATE = [
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]
LAUNCHERS = {
    "torchrun": torchrun(3),
    "accelerate": [str(BIN / "accelerate"), *ACCELERATE],
    "nothing": [sys.executable],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_launched_together_share_the_members_and_end_with_one_theta(
    launcher, model, alone, tmp_path
):
    finish(launch(LAUNCHERS[launcher], CHILD, model, tmp_path, 4))
    found = reports(tmp_path)
    assert len(found) == {"torchrun": 3, "accelerate": 2, "nothing": 1}[launcher]
    assert {report["digest"] for report in found} == {alone["digest"]}
    assert {report["again"] for report in found} == {
        alone["again"]
    }  # a second trainer in the same program
    assert [report["figures"] for report in found] == [True] + [False] * (len(found) - 1)
    assert (tmp_path / "final" / "model.safetensors").is_file()


def test_ranks_make_the_sizes_that_one_process_finds(model, alone, tmp_path):
    finish(
        launch(
            [sys.executable],
            CHILD,
            model,
            tmp_path / "one",
            4,
            '{"workers": "local", "learning_rate": "auto"}',
        )
    )
    finish(launch(torchrun(2), CHILD, model, tmp_path / "two", 4, '{"learning_rate": "auto"}'))
    digests = {report["digest"] for out in ("one", "two") for report in reports(tmp_path / out)}
    assert len(digests) == 1
    assert digests != {alone["digest"]}


def test_the_processes_of_a_machine_map_one_theta_and_none_listens_beyond_loopback(model, tmp_path):
    finish(launch(torchrun(2), CHILD, model, tmp_path, 2))
    found = reports(tmp_path)
    assert all(report["shared"] for report in found)
    assert all(ip in ("127.0.0.1", "::1") for report in found for ip in report["listening"]), found


def test_several_machines_each_keep_a_theta_and_a_resumed_run_brings_them_level(
    model, alone, tmp_path
):
    finish(launch(torchrun(1), CHILD, model, tmp_path, 3))
    resume = '{"resume_from_checkpoint": true}'
    nodes = [
        launch(
            torchrun(1, "--nnodes", "2", "--node_rank", str(node)),
            CHILD,
            model,
            tmp_path,
            4,
            resume,
        )
        for node in range(2)
    ]
    finish(*nodes)
    found = reports(tmp_path)
    assert {report["digest"] for report in found} == {alone["digest"]}
    assert [report["processes"] for report in found] == [2, 2]


def test_wrong_input_is_one_line_of_the_leader_and_all_end(model, tmp_path):
    command = [
        "--no-python",
        str(BIN / "estune"),
        "train",
        "--model_name_or_path",
        str(model),
        "--task",
        "conciseness",
    ]
    command += [
        "--workers",
        "accelerate",
        "--output_dir",
        str(tmp_path),
        "--max_train_samples",
        "2",
        "--max_steps",
        "1",
    ]
    finish(launch(torchrun(2), *command, "--population_size", "2", "--max_completion_length", "2"))
    again = launch(torchrun(2), *command)
    _, said = again.communicate(timeout=250)
    assert again.returncode != 0
    assert said.count("estune: output_dir:") == 1


def test_launched_processes_evaluate_several_tasks_as_one_process_does(model, tmp_path):
    command = [
        "--no-python",
        str(BIN / "estune"),
        "eval",
        "--model",
        str(model),
        "--tasks",
        "conciseness",
        "countdown",
    ]
    command += [
        "--max_eval_samples",
        "2",
        "--max_completion_length",
        "3",
        "--num_generations",
        "2",
        "--dtype",
        "float32",
    ]
    finish(
        launch(torchrun(2), *command, "--workers", "accelerate", "--output", tmp_path / "together")
    )
    finish(launch(torchrun(1), *command, "--output", tmp_path / "alone"))
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes() != b""


def test_several_machines_meet_over_the_interface_that_was_meant_whatever_an_engine_set(
    monkeypatch,
):
    """vLLM's own processes use the loopback interface, which reaches no other machine."""
    seen = []
    monkeypatch.setattr(
        module.dist,
        "ProcessGroupGloo",
        lambda *given: seen.append(os.environ.get("GLOO_SOCKET_IFNAME")),
    )
    for meant in ("eth7", None):
        monkeypatch.setattr(
            module, "_rendezvous", lambda meant=meant: (torch.distributed.HashStore(), meant)
        )
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        module.LaunchedProcess()._group("θ")
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert seen == ["eth7", None]


def test_machines_decay_towards_the_base_model_alike(model, tmp_path):
    decay = '{"weight_decay": 5.0}'
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    finish(
        launch(
            [sys.executable], CHILD, model, alone, 2, '{"workers": "local", "weight_decay": 5.0}'
        )
    )
    finish(
        *[
            launch(
                torchrun(1, "--nnodes", "2", "--node_rank", str(node)),
                CHILD,
                model,
                together,
                2,
                decay,
            )
            for node in range(2)
        ]
    )
    assert {report["digest"] for report in reports(together)} == {reports(alone)[0]["digest"]}
