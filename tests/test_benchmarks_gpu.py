"""Run `benchmarks/gpu_all.sh` at small sizes on a CPU, to find mistakes without a GPU."""

import json
import math
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from benchmarks import gpu
from benchmarks.gpu_all import carry, learn, results, tests
from benchmarks.gpu_all.promises import PARTS
from benchmarks.results import Entry, Results
from estune.errors import ModelError, ResourceError
from estune.noise import kernels
from estune.noise import torch as by_torch
from estune.theta.theta import Theta

SCRIPT = ROOT / "benchmarks" / "gpu_all.sh"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
H100 = "NVIDIA H100 80GB HBM3"


def script(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, **options)


def whole() -> dict[str, Entry]:
    """One entry per part, in which every promise holds."""
    entries = {}
    for part in PARTS:
        figures = {ratio.name: ratio.least or ratio.most or 0 for ratio in part.ratios}
        entries[part.name] = Entry(H100, "2026-11-27 12:00", 60.0, figures)
    return entries


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the results of a whole run on a GPU."""
    kept = Results(tmp_path / "results.json")
    for name, entry in whole().items():
        kept.put(name, entry)
    return tmp_path


@pytest.fixture
def printed(tmp_path) -> Path:
    """A folder where the part `kernels` printed figures, was cut off, and logged an error."""
    figures = ['{"bits_equal": true}', '{"perturbed_of_copy": 0.85}', '{"update_1_of']
    (tmp_path / "kernels.out").write_text("\n".join(["loading…", *figures]))
    (tmp_path / "kernels.log").write_text("Traceback …\nRuntimeError: out of memory\n\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.exists(), reason="run make model")
def test_all_parts_run_on_a_cpu_and_none_runs_again(tmp_path):
    done = script("--cpu", "--output", str(tmp_path), timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    found = Results(tmp_path / "results.json").entries
    assert list(found) == [part.name for part in PARTS]
    for part in PARTS[:-1]:
        assert {ratio.name for ratio in part.ratios} <= found[part.name].figures.keys()
    figures = {name: value for entry in found.values() for name, value in entry.figures.items()}
    assert all(value for name, value in figures.items() if name.endswith(("_equal", "_held")))
    assert figures["tests_failed"] == 0
    assert figures["sparse_es_tokens"] > 0 and figures["dense_es-paper_tokens"] > 0
    assert "no GPU" in (tmp_path / "table.txt").read_text()
    again = script("--cpu", "--output", str(tmp_path), timeout=60)
    assert again.returncode == 0
    assert again.stdout.count("measured already") == len(PARTS)


def test_an_unknown_part_is_refused_in_one_line():
    done = script("tests", "kernel")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'kernel'; the parts are tests, kernels, load, model and learn" in done.stderr


def test_a_part_that_is_stopped_keeps_its_figures(printed):
    entry = results.entry(printed, "kernels", 124, 120.4, False)
    assert entry.figures == {"bits_equal": True, "perturbed_of_copy": 0.85}
    assert entry.failed == "stopped after 120 s, its limit"


def test_a_part_that_is_killed_may_lack_memory(printed):
    failed = results.entry(printed, "kernels", 137, 5.2, False).failed
    assert failed.startswith("killed after 5 s") and "memory ran out" in failed


def test_a_failed_part_is_explained_by_the_last_line_of_its_log(printed):
    failed = results.entry(printed, "kernels", 1, 3, False).failed
    assert failed.startswith("RuntimeError: out of memory (status 1; see ")


def test_figures_from_before_a_failure_are_shown(printed, capsys):
    kept = Results(printed / "results.json")
    kept.put("kernels", results.entry(printed, "kernels", 124, 120.4, False))
    assert results.show(kept) == 1
    shown = (printed / "table.txt").read_text()
    assert "stopped after 120 s" in shown
    assert "2 hold: bits_equal, perturbed_of_copy" in shown
    assert "not measured, in parts that did not run: tests, load, model, learn" in shown


def test_the_summary_names_the_card_and_the_promises_that_do_not_hold(folder):
    kept = Results(folder / "results.json")
    slow = whole()["kernels"]
    figures = slow.figures | {"update_30_of_copy": 0.31, "bits_equal": False}
    kept.put("kernels", Entry(H100, slow.measured, 60.0, figures))
    assert results.show(kept) == 0  # all was measured
    shown = (folder / "table.txt").read_text()
    assert H100 in shown
    assert "2 do not hold: bits_equal, update_30_of_copy" in shown


def test_figures_from_a_cpu_are_compared_with_no_promise(folder):
    kept = Results(folder / "results.json")
    for name, entry in whole().items():
        kept.put(name, Entry("no GPU", entry.measured, 1.0, entry.figures, quick=True))
    assert results.show(kept) == 0
    shown = (folder / "table.txt").read_text()
    assert "nothing about a GPU" in shown
    assert "hold:" not in shown and "met" not in shown.split()


@pytest.mark.parametrize(
    ("entry", "done"),
    [
        (Entry(H100, "", 1.0), True),
        (Entry(H100, "", 1.0, failed="stopped"), False),
        (Entry(H100, "", 1.0, quick=True), False),
        (Entry("NVIDIA H200", "", 1.0), False),
        (None, False),
    ],
    ids=["done", "failed", "small sizes", "another card", "not run"],
)
def test_only_a_part_measured_in_full_on_this_card_is_done(entry, done, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "where", lambda: H100)
    kept = Results(tmp_path / "results.json")
    if entry:
        kept.put("load", entry)
    assert results.is_done(kept, "load", False) == done


def test_errors_count_as_failures_and_skipped_tests_are_counted_separately(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert tests.counts(report) == {"tests_passed": 3, "tests_failed": 3, "tests_skipped": 3}


def test_other_block_sizes_are_measured_with_the_same_operations(monkeypatch):
    """The backend only looks like Triton's, whose interpreter would take minutes."""
    backend = types.SimpleNamespace(**vars(by_torch), LAUNCH={"num_warps": 4}, _SIZE=2048)
    monkeypatch.setattr(kernels, "on_device", lambda kind: backend)
    theta = Theta({"w": torch.ones(40)})
    weights = {"w": torch.empty(40, dtype=torch.bfloat16)}
    measured = gpu.other_blocks(theta, weights, torch.device("cpu"), 1e-3)
    found = [name for figures in measured for name in figures]
    assert len(found) == 3 * len(gpu.BLOCKS)
    assert {"perturbed_4096x8_of_copy", "update_30_1024x4_of_copy"} <= set(found)
    assert (backend._SIZE, backend.LAUNCH["num_warps"]) == gpu.BLOCKS[-1]


def test_how_far_a_run_got_is_read_from_its_evaluations():
    first = {"train": {"reward": -100.0}, "held_out": {"reward": -90.0}}
    last = {"train": {"reward": -40.0}, "held_out": {"reward": -55.0}}
    start = {"step": 0, "tokens": 0, "seconds": 0.0}
    end = {"step": 9, "tokens": 5000, "seconds": 60.0}
    found = learn.reached([start | first, end | last])
    assert (found["tokens"], found["gain"], found["held_out_after"]) == (5000, 60.0, -55.0)


def test_runs_that_take_too_long_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        learn.Run, "command", lambda *words: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    children: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def popen(*words, **options):
        children.append(start(*words, **options))
        return children[-1]

    monkeypatch.setattr(learn.subprocess, "Popen", popen)
    learn.learn(learn.RUNS, tmp_path, "model", 0.2, {})
    assert [child.returncode for child in children] == [-15] * 4


def test_runs_that_do_not_stop_are_killed_together(tmp_path, monkeypatch):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(learn.Run, "command", lambda *words: [sys.executable, "-S", "-c", deaf])
    monkeypatch.setattr(learn, "STOPPING", 1)
    ends: list[float] = []
    wait = learn.wait

    def noted(child, seconds):
        ends.append(time.monotonic() + seconds)
        wait(child, seconds)

    monkeypatch.setattr(learn, "wait", noted)
    learn.learn(learn.RUNS, tmp_path, "model", 2, {})
    assert max(ends[4:]) - min(ends[4:]) < 0.5  # one second for all four, not for each


# files for a machine without a network


def test_a_missing_wheel_is_found_when_wheels_are_collected(tmp_path):
    with pytest.raises(
        ResourceError, match=r"satisfies the requirement .*adjust benchmarks/gpu_all/carried.txt"
    ):
        carry.check_complete(tmp_path)


def test_the_model_is_joined_from_its_pieces(tmp_path, tiny, monkeypatch):
    whole, tokenizer = tmp_path / "m.gguf", tmp_path / "tokenizer"
    halves = (tmp_path / "model-1", tmp_path / "model-2")
    whole.write_bytes(bytes(range(256)) * 3 + b"!")
    carry.split(whole, halves)
    sizes = [(half / "piece").stat().st_size for half in halves]
    assert sum(sizes) == 769 and max(sizes) - min(sizes) <= 1
    shutil.copytree(tiny, tokenizer)
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "the right one"}')
    monkeypatch.setattr(carry, "TOKENIZER", tokenizer)

    def resolve(path):
        return tiny if Path(path).read_bytes() == whole.read_bytes() else None

    monkeypatch.setattr("estune.theta.checkpoint.resolve", resolve)
    folder = carry.joined(halves, tmp_path / "joined" / "m.gguf")
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "eos_token": "the right one"
    }
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_a_damaged_piece_of_the_model_is_refused(tmp_path):
    whole, halves = tmp_path / "m.gguf", (tmp_path / "model-1", tmp_path / "model-2")
    whole.write_bytes(b"abcdef")
    carry.split(whole, halves)
    (halves[1] / "piece").write_bytes(b"deg")
    with pytest.raises(ModelError, match="copy them again"):
        carry.joined(halves, tmp_path / "joined" / "m.gguf")


def test_a_missing_piece_of_the_model_is_named(tmp_path, monkeypatch):
    there, missing = tmp_path / "model-1", tmp_path / "model-2"
    there.mkdir()
    monkeypatch.setattr(carry, "HALVES", (there, missing))
    with pytest.raises(ModelError, match="model-2 is missing"):
        carry.model(tmp_path / "none.gguf")


def test_a_part_that_is_too_large_is_refused(tmp_path, monkeypatch):
    for name in ("WHEELS", "TOKENIZER"):
        monkeypatch.setattr(carry, name, tmp_path)
    monkeypatch.setattr(carry, "HALVES", (tmp_path, tmp_path))
    monkeypatch.setattr(carry, "ROOT", ROOT)
    monkeypatch.setattr(carry, "MOST", 1000)
    with pytest.raises(ResourceError, match="more than"):
        carry.parts()


def test_each_carried_wheel_is_pinned_and_none_is_on_the_machine_already():
    carried, machine = (
        carry.requirements(carry.HERE / name) for name in ("carried.txt", "machine.txt")
    )
    assert all("==" in line for line in carried + machine)
    assert not {carry.name_of(line) for line in carried} & {carry.name_of(line) for line in machine}
    assert {"torch==2.11.0", "triton==3.6.0", "transformers==5.17.0", "numpy==2.5.2"} <= set(
        machine
    )


# benchmarks.gpu


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_finds_the_references_bits():
    flags = ["--parameters-like", "tiny", "--device", "cpu", "--json"]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = {}
    for line in done.stdout.splitlines():
        figures |= json.loads(line)
    assert figures["bits_equal"] and figures["update_bits_equal"] and figures["streamed_bits_equal"]
    ratios = [name for name in figures if "_of_copy" in name or "_over_" in name]
    assert len(ratios) == 7
    assert all(figures[name] > 0 for name in ratios)


def test_without_a_gpu_the_benchmark_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_shapes_for_qwen_have_the_models_7_615_616_512_parameters():
    shapes = gpu.MODELS["qwen2.5-7b"]
    assert (sum(map(math.prod, shapes.values())), len(shapes)) == (7_615_616_512, 339)
