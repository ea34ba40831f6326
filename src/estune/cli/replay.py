"""Rebuild the model of any step of a run from its journal, bit for bit.

  estune replay out --step 40 --output out-40
  estune replay out --step 40 --output out-40 --model /elsewhere/base-model

A base model and a journal (a few kilobytes of seeds and coefficients per step) determine the whole
run, so no completions are generated. A journal from someone else may name any base model. Therefore
the model's name is shown before it is downloaded, and its code runs only with --trust_remote_code.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estune.cli.settings import refuse_unknown
from estune.common.visible import one_line
from estune.config import RunConfig, build
from estune.errors import ConfigError

logger = logging.getLogger(__name__)
SUMMARY = "rebuild the model of a step from a run's journal"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, with its journal.jsonl")
    parser.add_argument(
        "--step", metavar="K", help="step to rebuild; 0: the base model; default: the last step"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="folder to write the checkpoint to; it must not exist",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the base model, if it is not where the journal says"
    )
    parser.add_argument(
        "--trust_remote_code",
        metavar="true|false",
        nargs="?",
        const="true",
        help="run code that comes with the base model",
    )


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    from estune.theta.journal import Journal

    refuse_unknown(unknown, ["step", "output", "model", "trust_remote_code"])
    journal = Journal.open(Path(options.run))
    step = _step(options.step, journal.last)
    output = Path(options.output)
    if output.exists():
        raise ConfigError(f"output: {output} exists already; choose another")
    config = _config(options, journal.header.config)
    model_name = options.model or journal.header.model
    if not options.model:
        revision = f" at revision {config.model_revision}" if config.model_revision else ""
        line = f"base model, from the journal of {options.run}: {model_name}{revision}"
        logger.info("%s", one_line(line))

    from rich.progress import track

    from estune.common.resources import check_disk
    from estune.run.model import Model
    from estune.theta.identity import Identity, run_digest

    model = Model(model_name, config, None, {})
    check_disk(output.parent, model.saved_bytes(), "the checkpoint", setting="output")
    for _ in track(journal.replay(model.theta, step), "replaying", total=step):
        pass
    digest = model.theta.digest()
    model.write(output, Identity(run_digest(journal.header), step, digest))
    print(f"step {step} of {options.run} is in {output}; θ's digest is {digest}")
    return 0


def _config(options: argparse.Namespace, recorded: Mapping[str, Any]) -> RunConfig:
    """Return the settings that decide θ, from the journal; trust comes only from the user."""
    settings = {"engine": "fake", "target_parameters": recorded.get("target_parameters")}
    if not options.model:
        settings["model_revision"] = recorded.get("model_revision")
    if options.trust_remote_code:
        settings["trust_remote_code"] = options.trust_remote_code
    return build(RunConfig, settings)


def _step(text: str | None, last: int) -> int:
    if text is None:
        return last
    if not text.isdecimal() or not text.isascii() or int(text) > last:
        raise ConfigError(
            f"step: must be a number from 0 to {last}, the run's last step; it is {text!r}"
        )
    return int(text)
