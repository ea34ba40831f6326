"""Make one run on Ray, disturb it as the command line says, and print the result.

tests/workers/test_ray.py runs it. The disturbance comes in the middle of a step, when the reward
function scores a member's completions.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from estune import ESConfig, ESTrainer
from estune.errors import EstuneError

WORDS = ("red", "blue", "cat", "dog", "sky", "x")
RAY = str(Path(sys.executable).parent / "ray")
WEIGHTS = "model.safetensors"
STEPS, MEMBERS, DECAY = 4, 16, 20.0  # α · λ = 0.2 a step


def vowels(completions: list[str]) -> list[float]:
    return [float(sum(map(text.count, "aeiou"))) for text in completions]


class Run:
    """A trainer that calls `mischief(run)` once, before the `at`-th member is scored."""

    def __init__(
        self, folder: Path, mischief: Callable[["Run"], None], *, at: int = 20, **settings: Any
    ) -> None:
        self.folder, self.model, self.calls, self.seen = folder, folder / "model", 0, {}
        self.at, self.mischief = at, mischief
        usual = {
            "output_dir": str(folder / "out"),
            "dtype": "float32",
            "sigma": 0.02,
            "population_size": MEMBERS,
            "max_steps": STEPS,
        }
        usual |= {
            "max_completion_length": 8,
            "save_steps": 1,
            "workers": "ray",
            "num_workers": 2,
            "worker_timeout": 100.0,
        }
        rows = [{"prompt": f"what is {word}"} for word in WORDS]
        self.trainer = ESTrainer(str(self.model), vowels, ESConfig(**usual | settings), rows)
        self.submit, self.trainer.rewards.submit = self.trainer.rewards.submit, self.disturbed  # type: ignore[method-assign]

    def disturbed(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.mischief(self)
        return self.submit(*arguments, **options)

    @property
    def workers(self) -> Any:
        return self.trainer.model.workers

    def nodes(self) -> set[str]:
        return {place.node for place in self.workers.locations()}

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.workers.locations()[0].process, number)

    def go(self) -> dict[str, Any]:
        error = None
        try:
            self.trainer.train()
        except EstuneError as raised:
            error = str(raised)
        lines = [
            json.loads(line)
            for line in (self.folder / "out" / "journal.jsonl").read_text().splitlines()[1:]
        ]
        digests = [line["digest"] for line in lines]
        alive = self.workers.status().alive
        return {"digests": digests, "error": error, "alive": alive, **self.seen}


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait in the middle of a step, which goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def local(run: Run) -> None: ...


def listening(run: Run) -> None:
    """The addresses at which processes of this run listen."""
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    run.seen["listening"] = sorted(
        {
            c.laddr.ip
            for p in mine
            for c in p.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
    )


def all_three(run: Run) -> None:
    until(lambda: len(run.workers.locations()) == 3)


def killed(run: Run) -> None:
    run.kill()


def hung(run: Run) -> None:
    run.kill(signal.SIGSTOP)


def late(run: Run) -> None:
    """Let a worker sleep during the step of its member and wake after θ has been updated."""
    hand_out, asleep = run.workers._hand_out, []

    def hand_out_asleep(slot: Any, alive: int, request: Any) -> None:
        if not asleep:
            asleep.append(slot.location.process)
            os.kill(slot.location.process, signal.SIGSTOP)
        hand_out(slot, alive, request)
        if len(asleep) == 1:
            asleep.append(list(run.workers._calls)[-1])

    def wake(run: Run) -> None:
        os.kill(asleep[0], signal.SIGCONT)
        until(lambda: asleep[1] not in run.workers._calls)

    until(lambda: len(run.workers.locations()) == 2)
    run.workers._hand_out = hand_out_asleep
    run.at, run.mischief = run.at + MEMBERS, wake


def killed_for_good(run: Run) -> None:
    """Without the model's weights no engine can be started again."""
    shutil.move(run.model / WEIGHTS, run.folder / WEIGHTS)
    run.kill()
    until(lambda: run.workers.status().requested == 1)


def all_killed_for_good(run: Run) -> None:
    shutil.move(run.model / WEIGHTS, run.folder / WEIGHTS)
    for place in run.workers.locations():
        os.kill(place.process, signal.SIGKILL)


def raylet_killed(run: Run) -> None:
    """The second node is lost, with its engine and its θ; another comes later."""
    until(lambda: len(run.nodes()) == 2)
    second = next(
        p
        for p in psutil.process_iter()
        if _is_raylet(p) and not any("--head" in word for word in p.cmdline())
    )
    os.kill(second.pid, signal.SIGKILL)
    run.at, run.mischief = run.at + MEMBERS, another_node


def another_node(run: Run) -> None:
    before = run.nodes()
    start("--address", ADDRESS)
    until(lambda: len(run.nodes() | before) == 3)
    run.seen["joined"] = True


def damaged(run: Run) -> None:
    """θ of the second node is overwritten behind the run's back."""
    import numpy as np
    import ray

    until(lambda: len(run.nodes()) == 2)
    run.seen["replicas"] = len(run.workers.keepers.actors)
    for keeper in run.workers.keepers.actors.values():
        ray.get(keeper.put.remote("model.norm.weight", 0, np.zeros(4, np.float32)))
        ray.get(keeper.became.remote(run.trainer.model.theta.version))


def begun(folder: Path) -> None:
    """Half of the run is there, made in one process."""
    Run(folder, local, workers="local", num_workers=1, max_steps=STEPS // 2).go()


ADDRESS = "127.0.0.1:6411"


def start(*flags: str) -> None:
    """`ray start` as a user types it."""
    subprocess.run(
        [RAY, "start", *flags, "--num-cpus=1", "--disable-usage-stats"],
        check=True,
        capture_output=True,
    )


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return (
            process.cmdline()[:1]
            and process.cmdline()[0].endswith("/raylet")
            and ADDRESS.split(":")[1] in " ".join(process.cmdline())
        )
    except psutil.Error:
        return False


CASES: dict[str, tuple[Callable[[Run], None], dict[str, Any]]] = {
    "local": (local, {"workers": "local", "num_workers": 1}),
    "undisturbed": (listening, {"profile": True}),
    "local with decay": (local, {"workers": "local", "num_workers": 1, "weight_decay": DECAY}),
    "with decay": (local, {"weight_decay": DECAY}),
    "local with auto": (local, {"workers": "local", "num_workers": 1, "learning_rate": "auto"}),
    "with auto": (local, {"learning_rate": "auto"}),
    "three": (all_three, {"num_workers": 3}),
    "as many as there is room": (local, {"num_workers": None}),
    "killed": (killed, {}),
    "hung": (hung, {"num_workers": 1, "worker_timeout": 15.0}),
    "late": (late, {}),
    "killed for good": (killed_for_good, {}),
    "all killed for good": (all_killed_for_good, {}),
    "resumed": (local, {"resume_from_checkpoint": True}),
    "raylet killed": (raylet_killed, {"ray_address": ADDRESS}),
    "resumed on two nodes": (local, {"ray_address": ADDRESS, "resume_from_checkpoint": True}),
    "replica damaged": (
        damaged,
        {"ray_address": ADDRESS, "at": 2 * MEMBERS},
    ),  # when no member of the step is at it any more
}


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("estune").setLevel(logging.INFO)
    mischief, settings = CASES[case]
    if case == "resumed":
        shutil.move(folder / WEIGHTS, folder / "model" / WEIGHTS)
    on_cluster = "ray_address" in settings
    if on_cluster:
        start("--head", f"--port={ADDRESS.split(':')[1]}", "--include-dashboard=false")
        start("--address", ADDRESS)
    if case == "resumed on two nodes":
        begun(folder)
    try:
        run = Run(folder, mischief, **settings)
        while (
            case == "resumed on two nodes" and len(run.nodes()) < 2
        ):  # while θ is still the base model's
            run.workers._turn(None)
        print("RESULT", json.dumps(run.go()))
    finally:
        if on_cluster:
            subprocess.run([RAY, "stop", "--force"], check=False, capture_output=True)


if __name__ == "__main__":
    main()
