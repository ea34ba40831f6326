"""Rebuild the model of any step of a run from its journal, bit for bit.

  estune replay out --step 40 --output out-40
  estune replay out --step 40 --output out-40 --model /elsewhere/base-model

A run is its base model and its journal: a few kilobytes of seeds and coefficients per step. Nothing
is generated. A journal from someone else may name any base model, so its name is shown before it is
downloaded, and code that comes with it runs only with --trust_remote_code.
"""

import argparse
import logging
from pathlib import Path

from estune.cli.settings import refuse_unknown
from estune.common.visible import one_line
from estune.config import RunConfig, build
from estune.errors import ConfigError

logger = logging.getLogger(__name__)
SUMMARY = "rebuild the model of a step from a run's journal"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, with its journal.jsonl")
    parser.add_argument(
        "--step", metavar="K", help="the step to rebuild, 0 for the base model; default the last"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="where to write the checkpoint; must not exist",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the base model's new location, if it moved"
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
    said = journal.header.config
    model_name = options.model or journal.header.model
    typed = {"trust_remote_code": options.trust_remote_code} if options.trust_remote_code else {}
    settings = {
        "target_parameters": said.get("target_parameters"),
        "model_revision": None if options.model else said.get("model_revision"),
    }
    config = build(RunConfig, settings | typed | {"engine": "fake"})
    if not options.model:
        revision = f" at revision {config.model_revision}" if config.model_revision else ""
        logger.info(
            "%s",
            one_line(f"base model, from the journal of {options.run}: {model_name}{revision}"),
        )

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


def _step(given: str | None, last: int) -> int:
    if given is None:
        return last
    if not given.isdecimal() or not given.isascii() or int(given) > last:
        raise ConfigError(
            f"step: must be a number from 0 to {last}, the run's last step; it is {given!r}"
        )
    return int(given)
