"""The metrics of a step."""

import numpy as np

from estune.monitor.metrics import fitness_metrics

NAN = float("nan")


def test_members_without_fitness_are_counted_also_if_no_member_has_one():
    some = fitness_metrics(np.array([1.0, NAN, 3.0]))
    assert some["es/members_left_out"] == 1
    assert some["reward"] == 2.0

    none = fitness_metrics(np.array([NAN, NAN]))
    assert none["es/members_left_out"] == 2
    assert none["reward"] is None
    assert some.keys() == none.keys()
