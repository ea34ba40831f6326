"""Both sandboxes, and a way to run programs as root and as an unprivileged user."""

import tempfile

import pytest
from boxes import Runner, made


@pytest.fixture(params=["bubblewrap", "sandlock"])
def sandbox(request):
    """Each sandbox in turn; skips one that this machine lacks."""
    return made(request.param)


@pytest.fixture(scope="session")
def run_as():
    """A function that runs a script of this folder as root or as an unprivileged user."""
    with tempfile.TemporaryDirectory(prefix="estune-user-", dir="/tmp") as folder:
        yield Runner(folder)
