"""The sandboxes that are tested, and scripts run with them as root or as an unprivileged user."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import estune
from estune.rewards.sandbox import KINDS, launch
from estune.rewards.sandbox.interface import Unusable

HERE = Path(__file__).parent
NOBODY = 65534
LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "dist-packages", "test", "idlelib", "config-*", "ensurepip", "tkinter"
)


def made(kind):
    if sys.platform != "linux":
        pytest.skip("sandboxes are Linux's")
    try:
        return KINDS[kind]()
    except Unusable as error:
        pytest.skip(str(error))


class Runner:
    """Runs a script of this folder with a sandbox, as root or a user, and returns its JSON."""

    def __init__(self, folder):
        self._folder, self._python = Path(folder), None

    def __call__(self, identity, script, kind, given):
        made(kind)
        if identity == "root" and os.getuid() != 0:
            pytest.skip("the tests don't run as root")
        if identity == "user" and os.getuid() == 0:
            self._python = self._python or _interpreter_for_all(self._folder)
            return _run(
                [self._python, f"{self._folder}/tests/{script}", kind],
                given,
                _for_user(self._folder),
            )
        return _run([sys.executable, str(HERE / script), kind], given, {"env": os.environ})


def _run(command, given, options):
    ended = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, timeout=300, **options
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def _for_user(folder):
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{folder}/packages",
        "HOME": f"{folder}/home",
        "TMPDIR": f"{folder}/tmp",
    }
    return {"env": environment, "user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": folder}


def _interpreter_for_all(folder):
    """Copy this interpreter and what the attacks import, which another user may not read here."""
    os.chmod(folder, 0o755)
    standard = Path(sysconfig.get_path("stdlib"))
    lib = folder / "python" / "lib"
    shutil.copytree(standard, lib / standard.name, ignore=LEFT_OUT, symlinks=True)
    for library in Path(sys.base_prefix, "lib").glob("libpython*"):
        shutil.copy2(library, lib)
    python = folder / "python" / "bin" / Path(launch.interpreter()).name
    python.parent.mkdir()
    shutil.copy2(launch.interpreter(), python)
    _copy_packages(folder / "packages")
    shutil.copytree(HERE, folder / "tests")
    for name in ("home", "tmp"):
        (folder / name).mkdir()
        os.chown(folder / name, NOBODY, NOBODY)
    (folder / "home" / ".netrc").write_text("a secret")
    return str(python)


def _copy_packages(folder):
    """Copy the sandboxes and what they import, without the rest of estune, which needs torch."""
    own = Path(estune.__file__).parent
    (folder / "estune").mkdir(parents=True)
    (folder / "estune" / "__init__.py").touch()
    shutil.copy2(own / "errors.py", folder / "estune")
    for room in ("common", "rewards"):
        shutil.copytree(own / room, folder / "estune" / room)
    for package in ("psutil", "sandlock"):
        if found := importlib.util.find_spec(package):
            shutil.copytree(Path(found.origin).parent, folder / package)
