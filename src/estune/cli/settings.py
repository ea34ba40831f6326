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

    Unless `quietly`, log which code and data the files that a run wrote would load.

    Raises:
        ConfigError: a flag or key is unknown, a value is wrong, a file cannot be read, or a run's
            file names code in the run's folder, which the user does not trust.
    """
    refuse_unknown(unknown, [name for name in vars(options) if name != "command"])
    names = {field.name for field in dataclasses.fields(RunConfig)}
    flags = {
        name: _value(name, value)
        for name, value in vars(options).items()
        if name in names and value is not None
    }
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


def require_model(config: RunConfig, setting: str = "model_name_or_path") -> str:
    """Return the config's model. Raises ConfigError, which names `setting`, if it has none."""
    if not config.model_name_or_path:
        raise ConfigError(f"{setting}: give a hub id, a local folder or a .gguf file")
    return config.model_name_or_path


def unreadable(path: str | Path, error: Exception) -> str:
    """Return a message that the file at `path` cannot be read, with the reason."""
    why = getattr(error, "strerror", None) or error
    return f"{path}: cannot be read ({why})"


def parsed(text: str, where: str) -> Any:
    """Return the value that a YAML text describes.

    Raises:
        ConfigError: the text is not valid YAML; the message begins with `where`.
    """
    with guarded(ConfigError, f"{where}: not valid YAML"):
        return yaml.safe_load(text)


def _check_trust(files: list[tuple[str, Settings]], flags: Settings, quietly: bool) -> None:
    """Log what the files load, and refuse code in a run's folder that the user does not trust.

    A run cannot vouch for its own code, so it matters where trust_remote_code is true:

        true in                       code of the model    code in a run's folder
        a flag, or the user's file    runs                 runs
        a file that a run wrote       runs                 is refused
    """
    all_files: Settings = {}
    users_files: Settings = {}
    for path, values in files:
        all_files |= values
        if not trust.is_run_file(Path(path)):
            users_files |= values
    trusts_model = trust.is_on((all_files | flags).get("trust_remote_code"))
    trusts_folder = trust.is_on((users_files | flags).get("trust_remote_code"))
    for path, values in files:
        without_flags = {name: value for name, value in values.items() if name not in flags}
        if not quietly:
            _log_sources(path, without_flags, trusts_model)
        if trust.is_run_file(Path(path)):
            trust.check_modules(without_flags, Path(path).parent, trusted=trusts_folder)


def _log_sources(path: str, values: Settings, trusts_model: bool) -> None:
    if trusts_model and trust.is_on(values.get("trust_remote_code")):
        logger.info("%s: turns trust_remote_code on, so code that comes with the model runs", path)
    if trust.is_run_file(Path(path)):
        for line in trust.sources(values):
            logger.info("%s: %s", path, line)


def _config(settings: Settings) -> RunConfig:
    task = get_task(str(settings["task"])) if settings.get("task") else None
    return build(RunConfig, (dict(task.defaults) if task else {}) | settings)


def _naming_its_file(error: ConfigError, files: list[tuple[str, Settings]]) -> ConfigError:
    """Return `error` with the name of the file that causes it, or unchanged if a flag does.

    Without flags, the files are added one after another, until one causes the same error.
    """
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
    if field.default not in (None, ""):
        text += f" [{field.default}]"
    flag: dict[str, Any] = {"help": text, "metavar": field.name.split("_")[-1].upper()}
    parts = typing.get_args(hint)
    if hint is bool:
        return flag | {"nargs": "?", "const": "true", "metavar": "true|false"}
    if typing.get_origin(hint) is typing.Literal:
        return flag | {"metavar": "|".join(parts)}
    if any(typing.get_origin(part) is list for part in parts):
        return flag | {"nargs": "+"}
    return flag


def _value(name: str, value: Any) -> Any:
    """Return a flag's value for the config: `none` becomes None, and YAML mappings are parsed."""
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
        raise ConfigError(unreadable(path, error)) from None
    values = parsed(text, path)
    if values is None:  # an empty file
        values = {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold settings, one 'name: value' per line")
    if trust.is_run_file(Path(path)):
        # Earlier versions wrote a setting `fitness`, which pass_k has made redundant.
        values.pop("fitness", None)
    return values
