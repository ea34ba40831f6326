"""Rebuild the model of any step of a run from its journal, bit for bit.

  estune replay out --step 40 --output out-40
  estune replay out --step 40 --output out-40 --model /elsewhere/base-model

A run is its base model and its journal: seeds and coefficients, some kilobytes a step. No prompt is generated.
"""

import argparse
from pathlib import Path

from estune.config import ESConfig, build, nearest
from estune.errors import ConfigError

SUMMARY = "rebuild the model of a step from a run's journal"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, with its journal.jsonl")
    parser.add_argument("--step", metavar="K", help="the step to rebuild, 0 for the base model; default the last")
    parser.add_argument("--output", metavar="DIR", required=True, help="where to write the checkpoint; must not exist")
    parser.add_argument("--model", metavar="MODEL", help="where the base model is now, if it has moved")


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    from estune.journal import Journal

    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}{nearest(unknown[0], ['step', 'output', 'model'])}")
    journal = Journal.open(Path(options.run))
    step = _step(options.step, journal.last)
    output = Path(options.output)
    if output.exists():
        raise ConfigError(f"output: {output} exists already; choose another")
    settings = {name: journal.header.config.get(name) for name in ("target_parameters", "trust_remote_code")}
    config = build(ESConfig, settings | {"engine": "fake"})

    from rich.progress import track

    from estune.identity import Identity, run_digest
    from estune.model import Model
    from estune.resources import check_disk

    model = Model(options.model or journal.header.model, config, None, {})
    check_disk(output.parent, model.saved_bytes(), "the checkpoint", setting="output")
    for _ in track(journal.replay(model.center, step), "replaying", total=step):
        pass
    digest = model.center.digest()
    model.write(output, Identity(run_digest(journal.header), step, digest))
    print(f"step {step} of {options.run} is in {output}; θ's digest is {digest}")
    return 0


def _step(given: str | None, last: int) -> int:
    if given is None:
        return last
    if not given.isdecimal() or not given.isascii() or int(given) > last:
        raise ConfigError(f"step: must be a number from 0 to {last}, the run's last step; it is {given!r}")
    return int(given)
