"""Run code from a run's folder only if the user allows it: somebody else may have sent the folder.

`trust_remote_code` is never taken from a journal. In a `--config` file it counts, as in TRL, and is
logged. But a file that a run wrote cannot allow the Python modules that lie next to it.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from estune.common.visible import one_line
from estune.errors import ConfigError
from estune.run.own_files import was_own

SHOWN = (  # settings that make a run download, import or pass something on
    "model_name_or_path",
    "model_revision",
    "task",
    "reward_funcs",
    "datasets",
    "engine_kwargs",
    "model_init_kwargs",
)


def is_on(value: Any) -> bool:
    """Whether a setting from a file or a flag is true, in any spelling that the config accepts."""
    return value is True or str(value).lower() in ("true", "1", "yes", "on", "y", "t")


def is_run_file(path: Path) -> bool:
    """Whether a run wrote this file of settings, or it lies next to a journal."""
    return was_own(path) or (path.parent / "journal.jsonl").is_file()


def sources(settings: Mapping[str, Any]) -> list[str]:
    """Return one line for each of the settings in SHOWN."""
    return [f"{name}: {one_line(settings[name])}" for name in SHOWN if settings.get(name)]


def check_modules(settings: Mapping[str, Any], folder: Path, *, trusted: bool) -> None:
    """Refuse modules that lie in `folder`, unless its code is trusted. Nothing is imported.

    Raises:
        ConfigError: a reward function or task would run code of that folder.
    """
    for name, path in _dotted_paths(settings):
        found = None if trusted else _source(path)
        if found and found.is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{name}: {one_line(path)} would run {found}, which came with the run in {folder}; "
                "read it, and add --trust_remote_code true if it may run"
            )


def _dotted_paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting and its dotted paths, also those in the entries of `datasets`."""
    entries = settings.get("datasets")
    if not isinstance(entries, list):
        entries = []
    for values in [settings, *entries]:
        for name in ("task", "reward_funcs"):
            value = values.get(name) if isinstance(values, Mapping) else None
            for path in value if isinstance(value, list) else [value]:
                if isinstance(path, str) and "." in path and "/" not in path:
                    yield name, path


def _source(path: str) -> Path | None:
    """Return the file or folder from which Python would import the first module of `path`."""
    spec = PathFinder.find_spec(path.split(".")[0], [*sys.path, str(Path.cwd())])
    if spec is None:
        return None
    origin = spec.origin if spec.has_location else None
    found = origin or next(iter(spec.submodule_search_locations or []), None)
    return Path(found).resolve() if found else None
