"""Collect what a GPU machine without a network needs, in parts that are copied one after the other.

    python -m benchmarks.gpu_all.carry           collect it in carry/, check that it is complete
    python -m benchmarks.gpu_all.carry model     on any machine: join the model, print its path

carry/wheels holds the packages of carried.txt, carry/model-1 and carry/model-2 the halves of the
GGUF, and carry/tokenizer the tokenizer that transformers makes from it, because releases before
5.19 choose a wrong end token.
"""

import argparse
import hashlib
import os
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
MOST = 64 << 20  # bytes of one part, with the repository
TAGS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux1",
)
PLATFORMS = [word for tag in TAGS for word in ("--platform", f"{tag}_x86_64")]
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
    pip(
        "download",
        "--no-deps",
        *TARGET,
        "--dest",
        str(WHEELS),
        "--requirement",
        str(HERE / "carried.txt"),
    )


def check_complete(wheels: Path) -> None:
    """Let pip resolve estune's dependencies from `wheels` and the machine's packages alone.

    Raises:
        ResourceError: a package is missing, or conflicts with what the machine has.
    """
    machine = requirements(HERE / "machine.txt")
    names = {name_of(line) for line in machine}
    wanted = [line for line in dependencies() if name_of(line) not in names] + [
        "pytest",
        "pytest-timeout",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for line in machine:
            stand_in(line, Path(folder))
        sources = [
            "--no-index",
            "--find-links",
            str(wheels),
            "--find-links",
            folder,
            "--constraint",
            str(HERE / "machine.txt"),
        ]
        pip(
            "install",
            "--dry-run",
            "--ignore-installed",
            *sources,
            *TARGET,
            "--target",
            f"{folder}/site",
            *wanted,
            alone=True,
        )


def dependencies() -> list[str]:
    """estune's dependencies, from pyproject.toml."""
    import tomllib

    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    return found


def requirements(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    """The package's name in the form in which pip compares names."""
    end = next(
        (at for at, letter in enumerate(requirement) if letter in "<>=!~;[ "), len(requirement)
    )
    return requirement[:end].lower().replace("_", "-")


def stand_in(requirement: str, folder: Path) -> None:
    """Write an empty wheel, which declares only that the machine has this package and version."""
    name, _, version = requirement.replace("-", "_").partition("==")
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")


def pip(*words: str, alone: bool = False) -> None:
    """Run pip. With `alone` it ignores its configuration, which may name sources of packages."""
    environment = {
        name: value for name, value in os.environ.items() if not (alone and name.startswith("PIP_"))
    }
    environment |= {"PIP_CONFIG_FILE": os.devnull} if alone else {}
    command = [sys.executable, "-m", "pip", words[0], "--quiet", *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        said = (
            [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
            or lines
            or ["nothing"]
        )
        raise ResourceError(
            f"pip {words[0]}: {said[0]}; adjust benchmarks/gpu_all/carried.txt or machine.txt"
        )


def split(model: Path, halves: Sequence[Path]) -> None:
    """Cut the file into one piece per folder, and write the whole file's digest into each."""
    if not model.is_file():
        raise ModelError(f"{model}: no such file; make model fetches it")
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
    """One line per part: what it contains and how large it is.

    Raises:
        ResourceError: a part is too large.
    """
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines()]
    repository = sum(path.lstat().st_size for path in files if path.exists())
    found = []
    for number, folders in enumerate(([WHEELS, HALVES[0]], [TOKENIZER, HALVES[1]]), 1):
        size = repository + sum(
            path.stat().st_size for folder in folders for path in folder.iterdir()
        )
        names = ", ".join(f"carry/{folder.name}" for folder in folders)
        if size > MOST:
            raise ResourceError(
                f"part {number} ({names}) with the repository: {size / 2**20:.1f} MiB, more than {MOST >> 20}"
            )
        found.append(f"part {number}: the repository and {names}: {size / 2**20:.1f} MiB")
    return found


def model(whole: Path) -> Path:
    """The model's file, or the checkpoint that is made from its pieces where they were copied here.

    Raises:
        ModelError: a piece is missing or damaged.
    """
    there = [folder for folder in (*HALVES, TOKENIZER) if folder.is_dir()]
    if not there and whole.is_file():
        return whole
    if missing := [folder for folder in (*HALVES, TOKENIZER) if folder not in there]:
        raise ModelError(
            f"the model is incomplete: {missing[0]} is missing; copy it here, or run make model"
        )
    return joined(HALVES, CARRY / "joined" / whole.name)


def joined(halves: Sequence[Path], path: Path) -> Path:
    """The checkpoint that transformers makes from the pieces, with the tokenizer in carry/."""
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
