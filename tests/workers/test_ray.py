"""A run on Ray ends with the same θ, whichever worker dies, hangs or joins late.

Ray, the processes and the kills are real.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import make_model

from estune.cli.main import main
from estune.config import ESConfig
from estune.workers import cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CHILD = Path(__file__).parent / "ray_child.py"
TOKEN = "0123456789abcdef" * 2


def outcome(case: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What became of the run `case` in `folder`, and what it said."""
    if not (folder / "model").exists() and case != "resumed":
        make_model(folder / "model")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, str(CHILD), case, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1].splitlines()[0]), done.stderr


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> list[str]:
    """θ's digests at each step of a run without Ray."""
    return outcome("local", tmp_path_factory.mktemp("local"))[0]["digests"]


def test_two_workers_compute_what_one_does_and_nothing_listens_beyond_loopback(local, tmp_path):
    result, said = outcome("undisturbed", tmp_path)
    assert result["digests"] == local
    assert result["alive"] == 2
    assert result["listening"]
    assert all(ip.removeprefix("::ffff:") in ("127.0.0.1", "::1") for ip in result["listening"]), (
        result["listening"]
    )
    assert "worker 1 on 127.0.0.1 (process" in said
    events = json.loads((tmp_path / "out/profile-0.json").read_text())
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == {"trainer", "rewards", "worker 1", "worker 2"}


def test_two_workers_decay_theta_to_the_same_bits_as_one_does(local, tmp_path):
    here, there = (outcome(case, tmp_path / case)[0] for case in ("local with decay", "with decay"))
    assert (there["digests"], there["alive"], there["error"]) == (here["digests"], 2, None)
    assert not set(here["digests"]) & set(local[1:])  # it did decay


def test_two_workers_find_the_sizes_that_one_finds(local, tmp_path):
    here, there = (outcome(case, tmp_path / case)[0] for case in ("local with auto", "with auto"))
    assert (there["digests"], there["alive"], there["error"]) == (here["digests"], 2, None)
    assert not set(here["digests"]) & set(local)


def test_more_workers_than_processors_share_them(local, tmp_path):
    result, said = outcome("three", tmp_path)
    assert (result["digests"], result["alive"]) == (local, 3), said


def test_left_to_itself_there_is_one_worker_a_node(local, tmp_path):
    result, _ = outcome("as many as there is room", tmp_path)
    assert (result["digests"], result["alive"]) == (local, 1)


def test_a_killed_worker_is_replaced(local, tmp_path):
    result, said = outcome("killed", tmp_path)
    assert (result["digests"], result["error"]) == (local, None)
    assert "it is restarted" in said


def test_a_worker_that_hangs_is_replaced(local, tmp_path):
    result, said = outcome("hung", tmp_path)
    assert (result["digests"], result["error"]) == (local, None)
    assert "did not answer within 15 s" in said


def test_a_worker_that_is_late_by_a_step_is_not_taken_for_a_broken_one(local, tmp_path):
    result, said = outcome("late", tmp_path)
    assert (result["digests"], result["error"], result["alive"]) == (local, None, 2)
    assert "it is restarted" not in said


def test_a_worker_that_cannot_be_replaced_is_given_up_and_the_run_goes_on(local, tmp_path):
    result, said = outcome("killed for good", tmp_path)
    assert (result["digests"], result["error"]) == (local, None)
    assert "the run continues with 1" in said
    assert result["alive"] == 1


def test_when_no_worker_is_left_the_run_stops_and_can_be_resumed(local, tmp_path):
    result, _ = outcome("all killed for good", tmp_path)
    assert "no worker is left" in result["error"]
    assert len(result["digests"]) < len(local)
    assert outcome("resumed", tmp_path)[0]["digests"] == local


@pytest.mark.slow
def test_a_node_may_be_lost_and_another_join_in_the_middle_of_a_run(local, tmp_path):
    result, said = outcome("raylet killed", tmp_path)
    assert (result["digests"], result["error"]) == (local, None)
    assert result["joined"]
    assert "it is restarted" in said


@pytest.mark.slow
def test_a_run_is_resumed_on_two_nodes_whose_theta_is_brought_along(local, tmp_path):
    result, _ = outcome("resumed on two nodes", tmp_path)
    assert (result["digests"], result["error"]) == (local, None)


@pytest.mark.slow
def test_a_replica_of_theta_that_differs_is_named_and_rebuilt(local, tmp_path):
    result, said = outcome("replica damaged", tmp_path)
    assert result["replicas"] == 1
    assert "differs from the trainer's; it is rebuilt" in said
    assert (result["digests"], result["error"]) == (local, None)


def train_command(model: Path, output: Path, *flags: str) -> list[str]:
    """A run on Ray of the task conciseness."""
    named = {"model_name_or_path": model, "task": "conciseness", "output_dir": output}
    settings = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "estune", "train", "--workers", "ray", *settings, *flags]


def test_a_cluster_that_is_not_there_is_one_line(tiny, tmp_path):
    command = train_command(tiny, tmp_path, "--ray_address", "127.0.0.1:1")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("estune: ray_address: no Ray cluster could be joined at 127.0.0.1:1")
    )


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "Ray did not start"
            time.sleep(0.2)


@pytest.fixture
def cluster_without_processors() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray cluster with room for no engine: its address, and the environment to join it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    ray = Path(sys.executable).with_name("ray")
    flags = "--head --block --num-cpus=0 --node-ip-address=127.0.0.1 --disable-usage-stats".split()
    command = [str(ray), "start", *flags, f"--port={port}", "--include-dashboard=false"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as head:
        try:
            _wait_until_open(port)
            yield f"127.0.0.1:{port}", environment
        finally:
            head.terminate()


def test_a_cluster_without_room_for_an_engine_is_one_line(
    cluster_without_processors, tiny, tmp_path
):
    address, environment = cluster_without_processors
    command = train_command(tiny, tmp_path, "--ray_address", address)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        f"estune: workers: one engine needs 1 CPU on one node, and no node of the cluster at "
        f"{address} has that; add a node, or set num_workers to wait until one joins; "
        "see vllm_tensor_parallel_size"
    )


def test_several_workers_without_ray_are_refused(capsys):
    assert (
        main(["train", "--num_workers", "2", "--model_name_or_path", "m", "--task", "conciseness"])
        == 2
    )
    assert (
        "num_workers: with workers local there is one engine per process, so it cannot be 2; "
        "choose workers: ray" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("set_already", "address", "wanted"),
    [
        ({}, None, {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        ({"RAY_AUTH_TOKEN": TOKEN}, "auto", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}),
        ({"RAY_AUTH_MODE": "disabled"}, None, {"RAY_AUTH_MODE": "disabled"}),
    ],
)
def test_rays_token_is_used_where_it_is_set_and_made_for_a_cluster_of_ones_own(
    set_already, address, wanted, monkeypatch
):
    monkeypatch.setattr(os, "environ", {"HOME": "/nowhere", **set_already})
    cluster.prepare(ESConfig(workers="ray", ray_address=address))
    assert wanted.items() <= os.environ.items()
    assert address or len(os.environ["RAY_AUTH_TOKEN"]) == 32


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_on_ray_stops_cleanly_when_asked_to(number, status, tiny, tmp_path):
    small = "--num_workers 2 --population_size 4 --max_steps 10000 --max_train_samples 4"
    flags = [*small.split(), "--max_completion_length", "4"]
    command = train_command(tiny, tmp_path / "out", *flags)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as run:
        assert any(line.startswith("step 2/") for line in run.stdout)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
    assert run.returncode == status, said
    assert "the run can be resumed" in said
    assert "Traceback" not in said
