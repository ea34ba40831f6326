"""Write a template for a task: data, prompt and reward in NAME.py, and a test in test_NAME.py.

  estune new-task my_task
  pytest test_my_task.py
  estune train --task my_task.TASK --model_name_or_path MODEL

Both files are written to the working folder. Existing files are never overwritten.
"""

import argparse
import importlib.util
import keyword
from importlib import resources
from pathlib import Path

from estune.errors import ConfigError

SUMMARY = "write a template for your own task, with a test"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the task and of its Python module")


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; estune new-task takes none")
    name = _module_name(options.name)
    files = {Path(f"{name}.py"): "new_task.py.txt", Path(f"test_{name}.py"): "new_task_test.py.txt"}
    if existing := next((path for path in files if path.exists()), None):
        raise ConfigError(f"{existing}: already exists; choose another name or move it away")
    templates = resources.files("estune.tasks") / "data"
    for path, template in files.items():
        text = (templates / template).read_text(encoding="utf-8")
        _write(path, text.replace("NAME", name))
    print(f"wrote {' and '.join(map(str, files))}; edit them, then run\n")
    print(f"  pytest test_{name}.py")
    model = "--model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct"
    print(f"  estune train --task {name}.TASK {model} --output_dir runs/{name}")
    return 0


def _module_name(name: str) -> str:
    """Return `name`. Raises ConfigError: Python could not import a new module of that name."""
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise ConfigError(
            f"NAME: {name!r} is not a valid module name; use letters, digits and _, such as my_task"
        )
    # The working folder comes last on the import path, so another module of that name would win.
    if importlib.util.find_spec(name) is not None and not Path(f"{name}.py").exists():
        raise ConfigError(
            f"NAME: a Python module {name!r} exists and would be imported; choose another name"
        )
    return name


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); change to a folder where you can write"
        ) from None
