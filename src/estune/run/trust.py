"""What a run's folder says is data: what it would load or run is shown first, and code in it runs only if that was typed.

A journal and a config.yaml may come from somebody else. `trust_remote_code` is never taken from a journal. A file that is
given as `--config` counts as typed, as in TRL, so there a line says what it turns on, and what else it names.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from estune.errors import ConfigError
from estune.run.own_files import was_own

SHOWN = (
    "model_name_or_path",
    "model_revision",
    "task",
    "reward_funcs",
    "datasets",
    "engine_kwargs",
    "model_init_kwargs",
)


def is_on(value: Any) -> bool:
    """Whether a setting of a file or a flag is on."""
    return value is True or str(value).lower() in (
        "true",
        "1",
        "yes",
        "on",
        "y",
        "t",
    )  # what the config takes for it


def is_run_file(path: Path) -> bool:
    """Whether a file of settings is one that a run wrote, or lies in the folder of one; any other is the user's own."""
    return was_own(path) or (path.parent / "journal.jsonl").is_file()


def sources(settings: Mapping[str, Any]) -> list[str]:
    """What settings would fetch, import or pass on, a line each."""
    return [f"{name}: {one_line(settings[name])}" for name in SHOWN if settings.get(name)]


def check_modules(settings: Mapping[str, Any], folder: Path, *, trusted: bool) -> None:
    """Refuse modules that lie in `folder` itself, unless its code is trusted. Nothing is imported.

    Raises:
        ConfigError: a reward function or task would run code of that folder.
    """
    for name, path in _dotted(settings):
        if not trusted and (found := _source(path)) and found.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{name}: {one_line(path)} would run {found}, which came with the run in {folder}; read it, "
                "and add --trust_remote_code true if it may run"
            )


def one_line(value: Any) -> str:
    """What a file says, as it may be shown on a line."""
    from estune.errors import clean

    return " ".join(clean(str(value)).split())


def _dotted(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The paths to objects of modules in settings, and in the entries of a mixture."""
    mixture = settings.get("datasets")
    entries = (
        [entry for entry in mixture if isinstance(entry, dict)] if isinstance(mixture, list) else []
    )
    for one in [settings, *entries]:
        for name in ("task", "reward_funcs"):
            value = one.get(name)
            paths = value if isinstance(value, list) else [value]
            yield from (
                (name, path)
                for path in paths
                if isinstance(path, str) and "." in path and "/" not in path
            )


def _source(path: str) -> Path | None:
    """The file or folder of the module that `path` begins with; the working folder comes last, as when it is imported."""
    spec = PathFinder.find_spec(path.split(".")[0], [*sys.path, str(Path.cwd())])
    if spec is None:
        return None
    places = (
        [spec.origin]
        if spec.has_location and spec.origin
        else list(spec.submodule_search_locations or [])
    )
    return Path(places[0]).resolve() if places else None
