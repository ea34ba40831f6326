"""Pushing uploads the model and its card, and reports a refusal by the hub in one line.

A fake replaces the hub.
"""

import pytest

from estune import ESConfig, ESTrainer
from estune.errors import ConfigError


class Hub:
    """Takes what `HfApi` is given."""

    uploads: list[tuple[str, str]]

    def __init__(self):
        Hub.uploads = []

    def create_repo(self, name, exist_ok):
        return type("Repo", (), {"repo_id": f"someone/{name}"})

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        Hub.uploads.append((repo_id, path_in_repo))

    def upload_folder(self, repo_id, folder_path, commit_message):
        Hub.uploads.append((repo_id, folder_path))
        return "https://hub/commit"


def trainer(tiny, tmp_path, rows):
    config = ESConfig(
        output_dir=str(tmp_path / "mine"), engine="fake", population_size=2, max_steps=1
    )
    return ESTrainer(
        str(tiny), lambda completions, **columns: [len(c) for c in completions], config, rows
    )


def test_the_model_and_its_card_are_uploaded(tiny, tmp_path, rows, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    run = trainer(tiny, tmp_path, rows)
    run.train()
    assert run.push_to_hub() == "https://hub/commit"
    assert Hub.uploads == [
        ("someone/mine", str(tmp_path / "mine" / "final")),
        ("someone/mine", "README.md"),
    ]


def test_a_refusal_says_where_the_model_is(tiny, tmp_path, rows):
    """Offline, as the tests are, the hub cannot be reached."""
    run = trainer(tiny, tmp_path, rows)
    with pytest.raises(ConfigError, match="the upload to .* failed .*final"):
        run.push_to_hub()
