"""Fixtures: each sandbox, and a way to run scripts in them as somebody else."""

import tempfile

import pytest
from boxes import KINDS, Runner, made


@pytest.fixture(params=KINDS)
def sandbox(request):
    return made(request.param)


@pytest.fixture(scope="session")
def run_as():
    with tempfile.TemporaryDirectory(prefix="estune-user-", dir="/tmp") as folder:
        yield Runner(folder)
