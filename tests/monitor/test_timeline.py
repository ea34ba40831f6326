"""A run reports where its time went: in a line at the end, and with `profile` in a trace.

Chrome and Perfetto show the trace.
"""

import json
import re
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import short

from estune import ESConfig, ESTrainer
from estune.monitor.timeline import Timeline
from estune.workers.base import Work

MEMBERS, STEPS = 4, 3


def run(model, out: Path, rows, **settings) -> ESTrainer:
    config = ESConfig(
        output_dir=str(out),
        engine="fake",
        population_size=MEMBERS,
        reward_workers=0,
        **{"max_steps": STEPS} | settings,
    )
    trainer = ESTrainer(str(model), short, config, rows[:2], rows[2:])
    trainer.train()
    return trainer


def events(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_a_run_ends_with_a_line_of_all_its_time_in_parts(mini, tmp_path, rows, capsys):
    run(mini, tmp_path / "out", rows)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("time: "))
    found = re.findall(r"([a-z -]+?) ([\d.]+)%", line.split(",", 1)[1])
    parts = {what.strip(): float(share) for what, share in found}
    assert "other" in parts
    assert sum(parts.values()) == pytest.approx(100, abs=1)
    assert not list((tmp_path / "out").glob("profile*"))


def test_a_run_that_had_nothing_left_to_do_says_nothing_of_time(mini, tmp_path, rows, capsys):
    run(mini, tmp_path / "out", rows)
    capsys.readouterr()
    run(mini, tmp_path / "out", rows, resume_from_checkpoint=True)
    assert "time: " not in capsys.readouterr().out


def test_a_profile_shows_each_member_loaded_generated_and_scored_and_each_step_updated(
    mini, tmp_path, rows
):
    run(mini, tmp_path / "out", rows, profile=True, eval_on_start=True, save_steps=1)
    found = events(tmp_path / "out/profile-0.json")
    count = defaultdict(int)
    for event in found:
        count[event["name"], event["ph"]] += 1
    assert count["load", "X"] == count["generate", "X"] == MEMBERS * STEPS
    assert count["score", "b"] == count["score", "e"] == MEMBERS * STEPS
    assert count["update", "X"] == count["digest", "X"] == count["save", "X"] == STEPS
    assert count["held-out evaluation", "X"] == 1
    lanes = {
        event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"
    }
    assert sorted(lanes.values()) == ["rewards", "trainer", "worker 1"]
    assert {event["tid"] for event in found[1:]} == lanes.keys()


def test_what_a_lane_shows_never_overlaps_and_lies_within_the_run(mini, tmp_path, rows):
    began = time.time() * 1e6
    run(mini, tmp_path / "out", rows, profile=True)
    spans = [event for event in events(tmp_path / "out/profile-0.json") if event["ph"] == "X"]
    for lane in {event["tid"] for event in spans}:
        mine = sorted(
            (event["ts"], event["ts"] + event["dur"]) for event in spans if event["tid"] == lane
        )
        assert all(before[1] <= after[0] + 1 for before, after in pairwise(mine))
    assert min(event["ts"] for event in spans) >= began - 1e5
    assert max(event["ts"] for event in spans) <= time.time() * 1e6 + 1e5


def test_a_resumed_run_writes_another_profile_beside_the_first(mini, tmp_path, rows):
    run(mini, tmp_path / "out", rows, profile=True, max_steps=2)
    first = (tmp_path / "out/profile-0.json").read_bytes()
    run(mini, tmp_path / "out", rows, profile=True, resume_from_checkpoint=True)
    assert (tmp_path / "out/profile-0.json").read_bytes() == first
    again = [event["name"] for event in events(tmp_path / "out/profile-2.json")]
    assert again.count("update") == STEPS - 2


def test_profiling_changes_nothing_that_a_run_computes(mini, tmp_path, rows):
    for profile in (True, False):
        run(mini, tmp_path / str(profile), rows, profile=profile)
    weights = [
        tmp_path / f"{profile}/checkpoint-{STEPS}/model.safetensors" for profile in (True, False)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_kill_leaves_a_profile_that_lacks_only_its_closing_bracket(tmp_path):
    timeline = Timeline(tmp_path / "profile.json")
    with timeline.span("update"):
        pass
    text = (tmp_path / "profile.json").read_text()  # on disk at once, before it is closed
    assert [event["name"] for event in json.loads(text + "]")] == [
        "process_name",
        "thread_name",
        "update",
    ]


def test_a_second_of_one_of_four_workers_is_a_quarter_of_the_trainers():
    timeline = Timeline()
    timeline.work([Work(1, 1.0, 3.0), Work(2, 0.0, 4.0)], workers=4)
    assert timeline._seconds == {"load": 0.25, "generate": 1.75}


def test_what_happens_within_a_span_does_not_count_twice(monkeypatch):
    clock = iter([100.0, 101.0, 106.0])  # the timeline's beginning, the span's, and its end
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timeline = Timeline()
    with timeline.span("wait"):
        timeline.work([Work(1, 1.0, 3.0, ended=105.0)], workers=1)
    assert timeline._seconds == {"load": 1.0, "generate": 3.0, "wait": 1.0}


def test_rewards_that_come_after_the_end_are_not_written(tmp_path):
    timeline = Timeline(tmp_path / "profile.json")
    timeline.close()
    before = (tmp_path / "profile.json").read_text()
    timeline.scored(time.perf_counter())
    assert (tmp_path / "profile.json").read_text() == before
