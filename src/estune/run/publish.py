"""What others get of a run: `config.yaml`, which reruns it, `README.md`, a model card, and an upload to the hub."""

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

_FROM_PYTHON = "# Made from Python, where model, data and rewards were given as objects: add them to rerun this.\n"


def write_config(folder: Path, config: ESConfig) -> None:
    """Write the settings that differ from the defaults, for `estune train --config`."""
    task = get_task(config.task) if isinstance(config, RunConfig) and config.task else None
    differing = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name)
        != (task.defaults if task else {}).get(field.name, field.default)
        and field.name != "resume_from_checkpoint"
    }
    text = yaml.safe_dump(without_tokens(differing), sort_keys=False, allow_unicode=True)
    if (
        clean(text) != text
    ):  # the settings have to stay as they are, so what would be hidden is escaped
        text = yaml.safe_dump(without_tokens(differing), sort_keys=False)
    write_own(
        folder / "config.yaml",
        ("" if isinstance(config, RunConfig) else _FROM_PYTHON) + text,
        "# {}",
    )


def write_card(
    folder: Path, config: ESConfig, model: str, step: int, figures: Mapping[str, Any]
) -> None:
    """Write the model card; `figures` are the evaluation metrics to show."""
    rows = "\n".join(
        f"| {table_cell(name)} | {value:.4g} |"
        for name, value in figures.items()
        if isinstance(value, (int, float))
    )
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    name = one_line(model)
    auto = config.learning_rate == "auto"
    alpha = "α and σ found step by step" if auto else f"α = {config.alpha:g}"
    heading = json.dumps(name, ensure_ascii=False)
    text = _CARD.format(
        name=heading, model=name, config=config, alpha=alpha, step=step, table=table
    )
    write_own(folder / "README.md", text, "\n<!-- {} -->")


def push(folder: Path, config: ESConfig, message: str) -> str:
    """Upload `folder/final` and the run's model card to `hub_model_id`; returns the commit's address.

    Raises:
        ConfigError: the hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    repository = config.hub_model_id or folder.resolve().name
    with guarded(
        ConfigError,
        f"hub_model_id: {repository} could not be pushed to",
        f"the model is in {folder / 'final'}",
    ):
        api = HfApi()
        repository = api.create_repo(repository, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository, folder_path=str(folder / "final"), commit_message=message
        )
        if card := own(folder / "README.md"):  # after the folder, which has the base model's
            api.upload_file(path_or_fileobj=str(card), path_in_repo="README.md", repo_id=repository)
        return str(commit)


_CARD = """---
library_name: transformers
base_model: {name}
tags: [estune, evolution-strategies]
---

# {model}, fine-tuned by evolution strategies

All chosen parameters were tuned with forward passes only by [Evolution Strategies at Scale](https://arxiv.org/abs/2509.24372):
N = {config.population_size}, σ = {config.sigma:g}, {alpha}, {step} steps, seed {config.seed}, {config.noise} noise.
{table}
```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("checkpoint-{step}")
```

`journal.jsonl` beside this file, with the base model, gives the parameters of every step again, bit for bit:
`estune replay . --step K --output DIR`.
"""
