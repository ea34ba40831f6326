"""A stopped run resumes and ends with the bytes of an undisturbed run, however it was stopped."""

import contextlib
import dataclasses
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import GGUF

from estune import ESConfig, ESTrainer
from estune.theta.journal import Journal, Step

CHILD = Path(__file__).with_name("run_child.py")
STEPS = 8


def final(folder: Path, steps: int = STEPS) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted((folder / f"checkpoint-{steps}").iterdir())
    }


@pytest.fixture(scope="module")
def undisturbed(mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(
        [sys.executable, str(CHILD), str(mini), str(folder), str(STEPS)],
        check=True,
        capture_output=True,
    )
    return final(folder)


class Forks:
    """Runs in forked children of a process that has imported everything.

    Fresh starts of Python would take minutes.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder

    def __call__(self, after: float, by: int) -> int:
        """Send the signal `by` after `after` seconds.

        Return the exit status, or minus the number of the signal that ended the run.
        """
        program = (
            "import sys, os, time, signal\n"
            f"sys.path.insert(0, {str(CHILD.parent)!r})\n"
            "import run_child, estune.trainer, estune.noise.numba\n"
            "from transformers import AutoTokenizer, GenerationConfig\n"
            "from transformers import LlamaForCausalLM, TrainerCallback\n"
            "for line in sys.stdin:\n"
            "    folder, after, by = line.split('\\t')\n"
            "    pid = os.fork()\n"
            "    if pid == 0:\n"
            "        code = 1\n"
            "        try:\n"
            f"            run_child.main({str(self.model)!r}, folder, '{STEPS}')\n"
            "            code = 0\n"
            "        except SystemExit as ended:\n"
            "            code = ended.code\n"
            "        finally:\n"
            "            sys.stdout.flush(); os._exit(code)\n"
            "    time.sleep(float(after))\n"
            "    try: os.kill(pid, int(by))\n"
            "    except ProcessLookupError: pass\n"
            "    _, status = os.waitpid(pid, 0)\n"
            "    print('status', os.waitstatus_to_exitcode(status), flush=True)\n"
        )
        if not hasattr(self, "process"):
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=-1,
                stdout=-1,
                stderr=subprocess.DEVNULL,
                text=True,
                process_group=0,
            )
        assert self.process.stdin and self.process.stdout
        print(self.folder, after, by, sep="\t", file=self.process.stdin, flush=True)
        while not (line := self.process.stdout.readline()).startswith("status"):
            assert line, "the process that forks the runs ended"
        return int(line.split()[1])

    def close(self) -> None:
        if hasattr(self, "process"):
            os.killpg(self.process.pid, signal.SIGKILL)  # with a run that hangs
            self.process.wait()


@pytest.fixture
def forked(mini, tmp_path):
    forks = Forks(mini, tmp_path / "run")
    yield forks
    forks.close()


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_run_stopped_at_25_random_moments_ends_with_the_same_bytes(forked, undisturbed, by):
    chance = random.Random(1)
    longest = 0.6 * _seconds(forked)
    # −15: before there was a run to stop
    stopped = {-9} if by == signal.SIGKILL else {143, -15}
    for _ in range(5):
        stops = 0
        while stops < 5:
            status = forked(chance.uniform(0, longest), by)
            assert status in {0, *stopped}
            stops += status in stopped
            if status == 0:  # it ended before the signal: start again, and stop earlier
                _is(undisturbed, forked.folder)
                longest *= 0.8
        assert forked(0, 0) == 0
        _is(undisturbed, forked.folder)


def _is(undisturbed, folder) -> None:
    """Compare a run that ended with the undisturbed one, and delete it."""
    assert final(folder) == undisturbed
    shutil.rmtree(folder)


def _seconds(forked) -> float:
    """How long a whole run takes."""
    started = time.monotonic()
    assert forked(0, 0) == 0
    shutil.rmtree(forked.folder)
    return time.monotonic() - started


@pytest.mark.slow
def test_a_run_of_a_real_engine_killed_three_times_ends_with_the_same_bytes(tiny, tmp_path):
    def start(folder):
        return subprocess.Popen(
            [sys.executable, str(CHILD), str(tiny), str(folder), "6", "transformers"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0
    for steps in (1, 3, 5):
        process = start(tmp_path / "killed")
        journal = tmp_path / "killed" / "journal.jsonl"
        while (
            not (journal.exists() and journal.read_bytes().count(b"\n") > steps)
            and process.poll() is None
        ):
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert start(tmp_path / "killed").wait(300) == 0
    assert final(tmp_path / "killed", 6) == final(tmp_path / "whole", 6)


@pytest.fixture
def start_real(tmp_path):
    """Starts a run of SmolLM2-135M in a folder; none is left after the test."""
    assert GGUF.exists(), "run `make model` first"
    settings = {
        "population_size": 2,
        "sigma": 0.005,
        "save_steps": 3,
        "max_completion_length": 4,
        "batch_size": 1,
        "eval_strategy": "no",
    }
    started = []

    def start(folder):
        arguments = [
            sys.executable,
            str(CHILD),
            str(GGUF),
            str(folder),
            "6",
            "transformers",
            json.dumps(settings),
        ]
        alone = os.environ | {
            "OMP_NUM_THREADS": "1"
        }  # threads that wait for one another crawl on a busy machine
        with (tmp_path / "said").open("ab") as said:
            started.append(subprocess.Popen(arguments, env=alone, stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_a_real_model_killed_at_three_random_moments_ends_with_the_same_bytes(
    start_real, tmp_path
):
    whole, folder, chance = tmp_path / "whole", tmp_path / "killed", random.Random(7)
    assert start_real(whole).wait() == 0
    seconds = np.mean([step.notes["metrics"]["step_time"] for step in Journal.open(whole).steps])
    for _ in range(3):
        before, process = _lines(folder), start_real(folder)
        while _lines(folder) < max(2, before + 1) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(
            chance.uniform(0, seconds)
        )  # answers, θ's update, the journal or a checkpoint are under way
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert start_real(folder).wait() == 0
    assert _steps(folder) == _steps(whole)
    assert final(folder, 6) == final(whole, 6)


def _steps(folder: Path) -> list[Step]:
    """The journal's steps without their notes, which tell times."""
    return [dataclasses.replace(step, notes={}) for step in Journal.open(folder).steps]


def _lines(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few hundred kilobytes, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("profile", [False, True], ids=["", "with a profile"])
def test_a_disk_that_fills_up_at_any_moment_stops_the_run_and_loses_nothing(
    make_trainer, tmp_path, small_disk, profile
):
    make_trainer(output_dir=str(tmp_path / "undisturbed")).train()
    run, ballast, stopped_after, others = small_disk / "run", small_disk / "ballast", [], []
    for spare in range(1, 60):
        trainer = make_trainer(output_dir=str(run), resume_from_checkpoint=True, profile=profile)
        _fill(ballast, spare)
        try:
            trainer.train()
        except OSError as error:
            others += ["No space left" not in str(error) and "disk" not in str(error)]
            journal = run / "journal.jsonl"
            stopped_after.append(journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0)
        ballast.unlink()
        make_trainer(output_dir=str(run)).train(resume_from_checkpoint=True)
        assert final(run, 4) == final(tmp_path / "undisturbed", 4)
        shutil.rmtree(run)
    assert not any(others)
    assert len(stopped_after) > 10
    assert len(set(stopped_after)) >= 3


def _fill(ballast: Path, spare: int) -> None:
    """Leave `spare` pages of the disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(ballast, ballast.stat().st_size - spare * 4096)


# Clocks, other processes, other places


def test_a_clock_that_jumps_changes_nothing(make_trainer, monkeypatch, tmp_path):
    make_trainer(output_dir=str(tmp_path / "undisturbed")).train()
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e12, 1e12))
    make_trainer().train()
    assert final(tmp_path / "run", 4) == final(tmp_path / "undisturbed", 4)


def test_a_folder_that_was_moved_is_resumed_where_it_is(make_trainer, tmp_path):
    make_trainer(output_dir=str(tmp_path / "undisturbed"), max_steps=6).train()
    make_trainer(max_steps=3).train()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    make_trainer(output_dir=str(tmp_path / "elsewhere"), max_steps=6).train(
        resume_from_checkpoint=True
    )
    assert final(tmp_path / "elsewhere", 6) == final(tmp_path / "undisturbed", 6)


# Members that are no longer a model


def test_members_that_compute_nan_are_left_out_and_counted(tiny, rows, tmp_path, capsys):
    args = ESConfig(
        output_dir=str(tmp_path / "run"),
        population_size=4,
        max_steps=1,
        sigma=1e18,
        max_completion_length=4,
        dtype="float32",
    )
    trainer = ESTrainer(str(tiny), lambda completions: [1.0] * len(completions), args, rows[:2])
    before = {name: tensor.clone() for name, tensor in trainer.model.theta.tensors.items()}
    output = trainer.train()
    assert output.metrics["es/members_not_finite"] == 4
    assert output.metrics["reward"] is None
    assert all(
        np.array_equal(before[name], tensor) for name, tensor in trainer.model.theta.tensors.items()
    )
    assert (
        "step 1: 4 members computed NaN or infinity and are left out; try a smaller sigma"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_three_thousand_steps_take_no_more_memory_or_files_than_six_hundred(make_trainer, tmp_path):
    import psutil

    here, seen = psutil.Process(), []

    def watching(completions, **columns):
        if not calls % 1200:
            gc.collect()
            seen.append((here.memory_info().rss, here.num_fds(), here.num_threads()))
        count()
        return [float(calls % 7)] * len(completions)

    calls = 0

    def count():
        nonlocal calls
        calls += 1

    make_trainer(
        reward_funcs=watching,
        max_steps=3_000,
        save_steps=1_500,
        save_total_limit=1,
        disable_tqdm=True,
        logging_steps=1_500,
    ).train()
    later = seen[2:]
    assert later[-1][1] <= later[0][1] + 4
    assert later[-1][2] <= later[0][2] + 2
    grown = later[-1][0] - later[0][0]
    assert grown < 30 << 20, f"{grown / 2**20:.0f} MiB"
    assert Journal.open(tmp_path / "run").last == 3_000
