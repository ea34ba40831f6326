"""Reward functions that do harm."""

import psutil
import pytest

from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions


@pytest.fixture
def rewards():
    """Makes `RewardFunctions` of one function; whatever they started is gone after the test."""
    made = []

    def make(function, **settings):
        limits = {"timeout": 5.0, "memory": 1.0} | {
            key: settings.pop(key) for key in list(settings) if key in RewardLimits.__annotations__
        }
        made.append(RewardFunctions([function], None, RewardLimits(**limits), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]
