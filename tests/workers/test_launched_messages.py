"""Launched processes exchange messages of any size, and only about prompts that all have."""

from pathlib import Path

import pytest
from helpers import make_model
from launching import finish, launch, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LARGE = """
from estune.workers.launched_process import LaunchedProcess

process, value = LaunchedProcess(), ["ä" * 3_000_000] * 2  # 36 MB as JSON
if process.leads:
    process.publish("large", value)
process.barrier("published")
assert process.is_published("large")
assert process.wait_for("large") == value
process.barrier("read")
if process.leads:
    process.delete("large")
    assert not process.is_published("large")
"""

OTHER_ROWS = """
import os, sys
from estune import ESConfig, ESTrainer

rows = [{"prompt": f"what is {word} {os.environ['RANK']}"} for word in ("red", "blue")]
config = ESConfig(output_dir=sys.argv[2], workers="accelerate", max_steps=1, population_size=2)

def zero(completions, **columns):
    return [0.0] * len(completions)

ESTrainer(sys.argv[1], zero, config, rows).train()
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_message_may_be_larger_than_what_the_launchers_store_takes(tmp_path):
    finish(launch(torchrun(2), script(tmp_path / "large.py", LARGE)))


def test_a_process_with_other_data_than_the_leaders_is_one_line_that_says_so(tmp_path):
    model = make_model(tmp_path / "model")
    there = script(tmp_path / "rows.py", OTHER_ROWS)
    process = launch(torchrun(2), there, model, tmp_path / "out")
    _, said = process.communicate(timeout=250)
    assert process.returncode != 0
    assert "process 1: the leader, process 0, has prompts that this process lacks" in said
