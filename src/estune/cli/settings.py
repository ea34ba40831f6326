"""Settings from YAML files and flags.

Flags override files, later files override earlier ones, and both override a task's defaults.
"""

import argparse
import dataclasses
import logging
import typing
from pathlib import Path
from typing import Any

import yaml

from estune.common.guard import guarded
from estune.common.name_hints import nearest
from estune.config import RunConfig, build
from estune.errors import ConfigError
from estune.run import trust
from estune.tasks import get_task

logger = logging.getLogger(__name__)

Settings = dict[str, Any]  # a setting's name → its value as given


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of `RunConfig`, in groups; the config checks the values."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="YAML files of settings; later files override earlier ones, flags override all",
    )
    hints = typing.get_type_hints(RunConfig)
    for title, fields in settings_by_group().items():
        group = parser.add_argument_group(title)
        for field in fields:
            group.add_argument(f"--{field.name}", **_flag(field, hints[field.name]))


def settings_by_group() -> dict[str, list[dataclasses.Field[Any]]]:
    """Return the fields of `RunConfig` under the titles of their groups, model and data first."""
    groups: dict[str, list[dataclasses.Field[Any]]] = {"model, data and rewards": []}
    for field in dataclasses.fields(RunConfig):
        groups.setdefault(field.metadata["group"], []).append(field)
    return groups


def read(options: argparse.Namespace, unknown: list[str], *, quietly: bool = False) -> RunConfig:
    """Return the config that the command line asks for.

    Unless `quietly`, log what code or data the files of a run would load.

    Raises:
        ConfigError: a flag or key is unknown, a value is wrong, a file cannot be read, or a file
            in a run's folder names code that lies there.
    """
    refuse_unknown(unknown, [name for name in vars(options) if name != "command"])
    names = {field.name for field in dataclasses.fields(RunConfig)}
    given = {name: value for name, value in vars(options).items() if value is not None}
    flags = {name: _value(name, value) for name, value in given.items() if name in names}
    files = [(path, _from_file(path)) for path in options.config]
    settings: Settings = {}
    for _, values in files:
        settings |= values
    settings |= flags
    _check_trust(files, flags, quietly)
    try:
        return _config(settings)
    except ConfigError as error:
        raise _naming_its_file(error, files) from None


def refuse_unknown(unknown: list[str], names: list[str]) -> None:
    """Raise ConfigError for the first unknown option, naming the nearest of `names`."""
    if unknown:
        first = next((word for word in unknown if word.startswith("--")), unknown[0])
        flag = first.split("=")[0]
        raise ConfigError(f"unknown option {flag!r}{nearest(flag, names)}")


def parsed(text: str, where: str) -> Any:
    """Return what a YAML text holds. Raises ConfigError, which begins with `where`."""
    with guarded(ConfigError, f"{where}: not valid YAML"):
        return yaml.safe_load(text)


def _check_trust(files: list[tuple[str, Settings]], flags: Settings, quietly: bool) -> None:
    """Log what the files turn on or load, and refuse code that lies in a run's folder.

    Only a flag or a file that no run wrote can allow that code: a run cannot vouch for itself.
    """
    given: Settings = {}
    users_own: Settings = {}
    for path, values in files:
        given |= values
        if not trust.is_run_file(Path(path)):
            users_own |= values
    model_code = trust.is_on((given | flags).get("trust_remote_code"))
    folder_code = trust.is_on((users_own | flags).get("trust_remote_code"))
    for path, values in files:
        effective = {name: value for name, value in values.items() if name not in flags}
        if not quietly:
            _log_sources(path, effective, model_code)
        if trust.is_run_file(Path(path)):
            trust.check_modules(effective, Path(path).parent, trusted=folder_code)


def _log_sources(path: str, values: Settings, model_code: bool) -> None:
    if model_code and trust.is_on(values.get("trust_remote_code")):
        logger.info("%s: turns trust_remote_code on: code that comes with the model runs", path)
    if trust.is_run_file(Path(path)):
        for line in trust.sources(values):
            logger.info("%s: %s", path, line)


def _config(settings: Settings) -> RunConfig:
    task = get_task(str(settings["task"])) if settings.get("task") else None
    return build(RunConfig, (dict(task.defaults) if task else {}) | settings)


def _naming_its_file(error: ConfigError, files: list[tuple[str, Settings]]) -> ConfigError:
    """Return `error` with the name of the first file that causes it, if one does without flags."""
    settings: Settings = {}
    for path, values in files:
        settings |= values
        try:
            _config(settings)
        except ConfigError as same:
            if str(same) == str(error):
                return ConfigError(f"{path}: {error}")
    return error


def _flag(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a setting."""
    text = field.metadata["help"].replace("%", "%%")
    shown = text if field.default in (None, "") else f"{text} [{field.default}]"
    flag: dict[str, Any] = {"help": shown, "metavar": field.name.split("_")[-1].upper()}
    parts = typing.get_args(hint)
    if hint is bool:
        return flag | {"nargs": "?", "const": "true", "metavar": "true|false"}
    if typing.get_origin(hint) is typing.Literal:
        return flag | {"metavar": "|".join(parts)}
    if any(typing.get_origin(part) is list for part in parts):
        return flag | {"nargs": "+"}
    return flag


def _value(name: str, value: Any) -> Any:
    """Return a flag's text as the config takes it: `none` unsets, mappings are written as YAML."""
    if value in ("none", ["none"]) and name != "report_to":
        return None
    if name == "datasets" and isinstance(value, list):
        return parsed(" ".join(value), "--datasets")
    if name.endswith("_kwargs") and isinstance(value, str):
        return parsed(value, f"--{name}")
    return value


def _from_file(path: str) -> Settings:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why})") from None
    values = {} if (found := parsed(text, path)) is None else found
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must be settings, one 'name: value' per line")
    if trust.is_run_file(Path(path)):
        values.pop("fitness", None)  # written by earlier versions; pass_k says the same
    return values
