"""Write a run's config.yaml and model card, and upload its model to the hub."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from estune.common.guard import guarded
from estune.common.visible import one_line, table_cell
from estune.config import ESConfig, RunConfig
from estune.errors import ConfigError, clean
from estune.run.own_files import own, write_own
from estune.run.resume import without_tokens
from estune.tasks import get_task

_FROM_PYTHON = (
    "# This run was started from Python, with model, data and rewards as objects: "
    "add them to rerun it.\n"
)


def write_config(folder: Path, config: ESConfig) -> None:
    """Write the settings that differ from the defaults, for `estune train --config`."""
    task = get_task(config.task) if isinstance(config, RunConfig) and config.task else None
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults |= task.defaults if task else {}
    settings = {
        name: getattr(config, name)
        for name, default in defaults.items()
        if getattr(config, name) != default
    }
    settings.pop("resume_from_checkpoint", None)
    settings = without_tokens(settings)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if clean(text) != text:  # escape control characters: removing them would change a setting
        text = yaml.safe_dump(settings, sort_keys=False)
    heading = "" if isinstance(config, RunConfig) else _FROM_PYTHON
    write_own(folder / "config.yaml", heading + text, "# {}")


def write_card(
    folder: Path,
    config: ESConfig,
    model: str,
    step: int,
    figures: Mapping[str, Any],
    loader: str = "AutoModelForCausalLM",
) -> None:
    """Write the model card.

    `figures` are the evaluation metrics to show, `loader` the class of transformers that loads it.
    """
    numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    rows = [f"| {table_cell(name)} | {value:.4g} |\n" for name, value in numbers.items()]
    name = one_line(model)
    auto = config.learning_rate == "auto"
    text = _CARD.format(
        name=json.dumps(name, ensure_ascii=False),
        model=name,
        loader=loader,
        config=config,
        alpha="α and σ found step by step" if auto else f"α = {config.alpha:g}",
        step=step,
        table="\n| metric | value |\n|---|---|\n" + "".join(rows) if rows else "",
    )
    write_own(folder / "README.md", text, "\n<!-- {} -->")


def push(folder: Path, config: ESConfig, message: str) -> str:
    """Upload `folder/final` and the model card to `hub_model_id`; return the commit's address.

    Raises:
        ConfigError: the upload failed.
    """
    from huggingface_hub import HfApi

    final = folder / "final"
    repository = config.hub_model_id or folder.resolve().name
    what = f"hub_model_id: the upload to {repository} failed"
    with guarded(ConfigError, what, f"the model is in {final}"):
        api = HfApi()
        repository = api.create_repo(repository, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository, folder_path=str(final), commit_message=message
        )
        # The card comes last, because `final` may hold the base model's card.
        if card := own(folder / "README.md"):
            api.upload_file(path_or_fileobj=str(card), path_in_repo="README.md", repo_id=repository)
        return str(commit)


_CARD = """---
library_name: transformers
base_model: {name}
tags: [estune, evolution-strategies]
---

# {model}, fine-tuned by evolution strategies

The parameters were tuned with forward passes only, by \
[Evolution Strategies at Scale](https://arxiv.org/abs/2509.24372):
N = {config.population_size}, σ = {config.sigma:g}, {alpha}, {step} steps, seed {config.seed}, \
{config.noise} noise.
{table}
```python
from transformers import {loader}
model = {loader}.from_pretrained("checkpoint-{step}")
```

`journal.jsonl` next to this file, with the base model, reproduces the parameters of every step bit
for bit: `estune replay . --step K --output DIR`.
"""
