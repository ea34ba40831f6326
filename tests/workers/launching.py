"""Start processes with torchrun or accelerate, as users do, and wait for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


# Two processes of pytest may launch at the same time.
PORT = str(29621 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))


def torchrun(processes: int, *more: str) -> list[str]:
    return [
        str(BIN / "torchrun"),
        "--nproc_per_node",
        str(processes),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        PORT,
        *more,
    ]


def launch(launcher: list[str], *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, said = process.communicate(timeout=250)
        assert process.returncode == 0, said[-3000:]


def reports(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
