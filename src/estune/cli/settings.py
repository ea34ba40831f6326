"""Settings from YAML files and flags to a config: flags win over files, later files over earlier, both over the task's defaults."""

import argparse
import dataclasses
import logging
import typing
from pathlib import Path
from typing import Any

import yaml

from estune.common.guard import guarded
from estune.config import ESConfig, RunConfig, build, nearest
from estune.errors import ConfigError
from estune.run import trust
from estune.tasks import get_task

logger = logging.getLogger(__name__)

_GROUPS = {
    "model, data and rewards": "model_name_or_path",
    "evolution strategy": "population_size",
    "prompts and generation": "batch_size",
    "engine and workers": "engine",
    "rewards": "reward_weights",
    "evaluation": "eval_strategy",
    "the run's folder": "output_dir",
    "logging": "logging_steps",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting of `RunConfig`, in groups; values stay text, the config checks them."""
    files = "YAML files of the settings below; a later file overrides an earlier one, flags override all"
    parser.add_argument(
        "--config", metavar="FILE", nargs="+", action="extend", default=[], help=files
    )
    starts = {first: title for title, first in _GROUPS.items()}
    hints = typing.get_type_hints(RunConfig)
    group: Any = parser
    own = {field.name for field in dataclasses.fields(ESConfig)}
    fields = dataclasses.fields(RunConfig)
    for field in [f for f in fields if f.name not in own] + [f for f in fields if f.name in own]:
        if field.name in starts:
            group = parser.add_argument_group(starts[field.name])
        group.add_argument(f"--{field.name}", **_flag(field, hints[field.name]))


def read(options: argparse.Namespace, unknown: list[str], *, quietly: bool = False) -> RunConfig:
    """The config that the command line asks for; unless `quietly`, what files would have run or fetched is said.

    Raises:
        ConfigError: a flag or key is unknown, a value wrong, or a file cannot be read, or one of a run's folder names code in it.
    """
    names = [field.name for field in dataclasses.fields(RunConfig)]
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), unknown[0]).split("=")[0]
        raise ConfigError(
            f"unknown option {flag!r}{nearest(flag, [name for name in vars(options) if name != 'command'])}"
        )
    flags = {
        name: _value(name, value)
        for name, value in vars(options).items()
        if name in names and value is not None
    }
    files = [(path, _from_file(path)) for path in options.config]
    settings: dict[str, Any] = {}
    for _, values in files:
        settings |= values
    for path, values in files:
        _check_trust(
            Path(path),
            {name: value for name, value in values.items() if name not in flags},
            settings | flags,
            quietly,
        )
    try:
        return _config(settings | flags)
    except ConfigError as error:
        raise _naming_its_file(error, files) from None


def _check_trust(
    path: Path, values: dict[str, Any], settings: dict[str, Any], quietly: bool
) -> None:
    """Say what a file would have run or fetched, and refuse code in a run's folder that was not allowed; raises ConfigError."""
    trusted = trust.is_on(settings.get("trust_remote_code"))
    if not quietly and trusted and trust.is_on(values.get("trust_remote_code")):
        logger.info(
            "%s: turns trust_remote_code on, so that code which comes with the model runs", path
        )
    if trust.is_run_file(path):
        for line in [] if quietly else trust.sources(values):
            logger.info("%s: %s", path, line)
        trust.check_modules(values, path.parent, trusted=trusted)


def _config(settings: dict[str, Any]) -> RunConfig:
    task = get_task(str(settings["task"])) if settings.get("task") else None
    return build(RunConfig, (dict(task.defaults) if task else {}) | settings)


def _naming_its_file(error: ConfigError, files: list[tuple[str, dict[str, Any]]]) -> ConfigError:
    """`error` with the file that brings it in, where one does: the files up to it are wrong in the same way without any flag."""
    settings: dict[str, Any] = {}
    for path, values in files:
        settings |= values
        try:
            _config(settings)
        except ConfigError as same:
            if str(same) == str(error):
                return ConfigError(f"{path}: {error}")
    return error


def _flag(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    text = field.metadata["help"].replace("%", "%%")
    shown = f"{text} [{field.default}]" if field.default not in (None, "") else text
    parts = typing.get_args(hint)
    flag: dict[str, Any] = {
        "default": None,
        "help": shown,
        "metavar": field.name.split("_")[-1].upper(),
    }
    if hint is bool:
        return flag | {"nargs": "?", "const": "true", "metavar": "true|false"}
    if typing.get_origin(hint) is typing.Literal:
        return flag | {"metavar": "|".join(parts)}
    if any(typing.get_origin(part) is list for part in parts):
        return flag | {"nargs": "+"}
    return flag


def _value(name: str, value: Any) -> Any:
    """A flag's text as the config takes it: `none` unsets, a setting that is a mapping is written as YAML."""
    if value in ("none", ["none"]) and name != "report_to":
        return None
    if name == "datasets" and isinstance(value, list):
        return parsed(" ".join(value), "--datasets")
    if name.endswith("_kwargs") and isinstance(value, str):
        return parsed(value, f"--{name}")
    return value


def _from_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    values = parsed(text, path)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must be settings, one 'name: value' a line")
    return values


def parsed(text: str, where: str) -> Any:
    """What a YAML text says; `where` names it. Raises ConfigError."""
    with guarded(ConfigError, f"{where}: is no YAML"):
        return yaml.safe_load(text)
