"""Reward functions that do harm."""

import psutil
import pytest

from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions


@pytest.fixture
def rewards():
    """Makes `RewardFunctions` of one function; whatever they started is gone after the test."""
    made = []
    before = _children()

    def make(function, **settings):
        limits = {"timeout": 5.0, "memory": 1.0} | {
            key: settings.pop(key) for key in list(settings) if key in RewardLimits.__annotations__
        }
        made.append(RewardFunctions([function], None, RewardLimits(**limits), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not _children() - before


def _children():
    """The living processes that this one started; other tests of the process may have left some."""
    children = psutil.Process().children(recursive=True)
    return {child for child in children if child.status() != psutil.STATUS_ZOMBIE}
