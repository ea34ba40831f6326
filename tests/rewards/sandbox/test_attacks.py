"""No attack gets anything from either sandbox, as root or as an unprivileged user."""

import itertools

import pytest
from attacks import AMOUNTS, ATTACKS, FILES, NETWORK, PROCESSES, RIGHTS

IDENTITIES = ["root", "user"]
WHO = list(itertools.product(["bubblewrap", "sandlock"], IDENTITIES))

pytestmark = pytest.mark.slow


@pytest.fixture(params=WHO, ids=lambda who: " as ".join(who), scope="module")
def reports(request, run_as):
    """Return what all attacks printed and changed, in one sandbox as one user."""
    kind, identity = request.param
    return run_as(identity, "attack_child.py", kind, ATTACKS)


def assert_held(report):
    """Assert that an attack began, got nothing and changed nothing outside."""
    assert "ready" in report["output"], report["errors"]
    assert "GOT" not in report["output"]
    assert report["touched"] == []


@pytest.mark.parametrize("name", FILES)
def test_no_file_outside_is_read_or_changed(reports, name):
    assert_held(reports[name])


@pytest.mark.parametrize("name", RIGHTS)
def test_no_right_is_gained(reports, name):
    assert_held(reports[name])


@pytest.mark.parametrize("name", PROCESSES)
def test_no_process_outside_is_reached_or_left_behind(reports, name):
    assert_held(reports[name])


@pytest.mark.parametrize("name", NETWORK)
def test_nothing_is_connected(reports, name):
    assert_held(reports[name])


@pytest.mark.parametrize("name", AMOUNTS)
def test_no_more_memory_disk_or_output_is_taken_than_allowed(reports, name):
    assert_held(reports[name])
    assert reports[name]["size"] <= 1 << 20


def test_each_attack_ends_in_time(reports):
    assert {name for name, report in reports.items() if report["seconds"] > 10} == set()
