"""Collect what a GPU machine without a network needs, in parts that are copied one after the other.

    python -m benchmarks.gpu_all.carry           collect it in carry/, and check that it is complete
    python -m benchmarks.gpu_all.carry model     on any machine: join the model, and print its path

carry/wheels contains the packages of carried.txt; carry/model-1 and carry/model-2, the halves of
the GGUF; carry/tokenizer, the tokenizer that transformers makes from it, because releases before
5.19 choose a wrong end token.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import MODEL, ROOT
from estune.errors import EstuneError, ModelError, ResourceError

HERE = Path(__file__).parent
CARRY = ROOT / "carry"
WHEELS, TOKENIZER = CARRY / "wheels", CARRY / "tokenizer"
HALVES = (CARRY / "model-1", CARRY / "model-2")
MOST = 64 << 20  # bytes of a part and the repository
TAGS = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
PLATFORMS = [word for tag in TAGS for word in ("--platform", f"manylinux{tag}_x86_64")]
TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *PLATFORMS]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=["model"], help="join the model; without it, collect everything"
    )
    joining = parser.parse_args().what == "model"
    try:
        if joining:
            print(model(MODEL))
            return 0
        collect_wheels()
        check_complete(WHEELS)
        split(MODEL, HALVES)
        collect_tokenizer(MODEL)
        for line in parts():
            print(line)
    except EstuneError as error:
        print(f"gpu_all: {error}", file=sys.stderr)
        return 2
    return 0


def collect_wheels() -> None:
    """Download the packages in carried.txt, for the GPU machine's Python rather than this one."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    packages = ["--no-deps", "--requirement", str(HERE / "carried.txt")]
    pip("download", *TARGET, *packages, "--dest", str(WHEELS))


def check_complete(wheels: Path) -> None:
    """Let pip resolve estune's dependencies from `wheels` and the machine's packages alone.

    Raises:
        ResourceError: a package is missing, or conflicts with what the machine has.
    """
    machine = requirements(HERE / "machine.txt")
    names = {name_of(line) for line in machine}
    wanted = [line for line in dependencies() if name_of(line) not in names]
    with tempfile.TemporaryDirectory() as folder:
        for line in machine:
            stand_in(line, Path(folder))
        sources = ["--no-index", "--find-links", str(wheels), "--find-links", folder]
        versions = ["--constraint", str(HERE / "machine.txt"), *wanted, "pytest", "pytest-timeout"]
        trial = ["--dry-run", "--ignore-installed", "--target", f"{folder}/site"]
        pip("install", *trial, *sources, *TARGET, *versions, alone=True)


def dependencies() -> list[str]:
    """Return estune's dependencies, from pyproject.toml."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def requirements(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """Return the package's name, written as pip compares names."""
    name, *_ = re.split("[<>=!~;[ ]", requirement)
    return name.lower().replace("_", "-")


def stand_in(requirement: str, folder: Path) -> None:
    """Write an empty wheel of this package and version, in place of the one on the machine."""
    name, _, version = requirement.replace("-", "_").partition("==")
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for part, text in (("METADATA", metadata), ("WHEEL", tags), ("RECORD", "")):
            file.writestr(f"{name}-{version}.dist-info/{part}", text)


def pip(*words: str, alone: bool = False) -> None:
    """Run pip. With `alone` it ignores its configuration, which may name sources of packages.

    Raises:
        ResourceError: pip failed.
    """
    environment = dict(os.environ)
    if alone:
        settings = [name for name in environment if name.startswith("PIP_")]
        for name in settings:
            del environment[name]
        environment["PIP_CONFIG_FILE"] = os.devnull
    command = [sys.executable, "-m", "pip", words[0], "--quiet", *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines() or ["failed without a message"]
        message = next((line for line in lines if line.startswith("ERROR")), lines[0])
        raise ResourceError(
            f"pip {words[0]}: {message.removeprefix('ERROR: ')}; "
            "adjust benchmarks/gpu_all/carried.txt or machine.txt"
        )


def split(model: Path, halves: Sequence[Path]) -> None:
    """Cut the file into one piece per folder, and write the whole file's digest into each."""
    if not model.is_file():
        raise ModelError(f"{model}: no such file; make model downloads it")
    data = model.read_bytes()
    size = -(-len(data) // len(halves))
    for number, folder in enumerate(halves):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "piece").write_bytes(data[number * size : (number + 1) * size])
        (folder / "sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")


def collect_tokenizer(model: Path) -> None:
    """Copy the tokenizer that this environment's transformers makes from the GGUF."""
    from estune.theta.checkpoint import resolve

    folder = resolve(str(model))
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(folder / name, TOKENIZER / name)


def parts() -> list[str]:
    """Return one line per part: what it contains and how large it is.

    Raises:
        ResourceError: a part is too large.
    """
    repository = repository_bytes()
    lines = []
    for number, folders in enumerate(([WHEELS, HALVES[0]], [TOKENIZER, HALVES[1]]), 1):
        files = [path for folder in folders for path in folder.iterdir()]
        size = repository + sum(path.stat().st_size for path in files)
        names = ", ".join(f"carry/{folder.name}" for folder in folders)
        line = f"part {number}: the repository and {names}: {size / 2**20:.1f} MiB"
        if size > MOST:
            raise ResourceError(f"{line}, more than {MOST >> 20}")
        lines.append(line)
    return lines


def repository_bytes() -> int:
    """Return the size of all files that git does not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines()]
    return sum(path.lstat().st_size for path in files if path.exists())


def model(whole: Path) -> Path:
    """Return the model's file or, if pieces of it were copied here, the checkpoint made from them.

    Raises:
        ModelError: a piece is missing or damaged.
    """
    pieces = (*HALVES, TOKENIZER)
    missing = [folder for folder in pieces if not folder.is_dir()]
    if len(missing) == len(pieces) and whole.is_file():
        return whole
    if missing:
        raise ModelError(
            f"the model is incomplete: {missing[0]} is missing; copy it here, or run make model"
        )
    return joined(HALVES, CARRY / "joined" / whole.name)


def joined(halves: Sequence[Path], path: Path) -> Path:
    """Return the checkpoint that transformers makes from the pieces, with carry/'s tokenizer.

    Raises:
        ModelError: a piece is damaged.
    """
    from estune.theta.checkpoint import resolve

    data = b"".join((folder / "piece").read_bytes() for folder in halves)
    digest = hashlib.sha256(data).hexdigest()
    if wrong := [folder for folder in halves if (folder / "sha256").read_text().strip() != digest]:
        raise ModelError(
            f"the pieces in {wrong[0].parent} do not make the original file; copy them again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    folder = resolve(str(path))
    target = path.with_suffix("")
    shutil.copytree(folder, target, dirs_exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, target / name)
    return target


if __name__ == "__main__":
    sys.exit(main())
