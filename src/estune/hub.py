"""Upload a run's result to the Hugging Face Hub."""

from pathlib import Path

from estune.config import ESConfig
from estune.errors import ConfigError
from estune.own import own
from estune.seams import guarded


def push(folder: Path, config: ESConfig, message: str) -> str:
    """Upload `folder/final` and the run's model card to `hub_model_id`; returns the commit's address.

    Raises:
        ConfigError: the hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    repository = config.hub_model_id or folder.resolve().name
    with guarded(ConfigError, f"hub_model_id: {repository} could not be pushed to", f"the model is in {folder / 'final'}"):
        api = HfApi()
        repository = api.create_repo(repository, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=repository, folder_path=str(folder / "final"), commit_message=message)
        if card := own(folder / "README.md"):  # after the folder, which has the base model's
            api.upload_file(path_or_fileobj=str(card), path_in_repo="README.md", repo_id=repository)
        return str(commit)
