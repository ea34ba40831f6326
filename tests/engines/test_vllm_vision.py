"""Images through vLLM, on its CPU build and without torchvision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
CHILD = Path(__file__).with_name("vllm_vision_child.py")


def test_members_see_the_same_on_both_engines_with_a_tuned_vision_tower(tmp_path):
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path / "model")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted, found = json.loads(done.stdout.splitlines()[-1])
    assert found == wanted
    assert found[0] != found[1]
