"""What a user installs is the whole package."""

import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file_and_the_command(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("estune-*.whl"))) as wheel:
        names = set(wheel.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "estune = estune.cli.main:main" in wheel.read(entry_points).decode()
    sources = [
        path
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    wanted = {
        str(path.relative_to(ROOT / "src"))
        for path in sources
        if path.suffix in (".py", ".typed", ".jsonl")
    }
    assert wanted <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_importing_the_config_pulls_in_no_torch():
    code = (
        "import sys, estune.config; "
        "assert not {'torch', 'transformers', 'datasets', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
