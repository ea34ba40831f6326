"""Where the base model comes from, so that workers on other machines can load it too."""

from dataclasses import dataclass
from typing import Any

from estune.errors import ModelError
from estune.theta.checkpoint import Checkpoint, open_checkpoint, resolve
from estune.theta.parameters import Layout


@dataclass(frozen=True)
class ModelSource:
    """The base model as the user named it, and what the trainer found when it opened the model.

    name: hub id, folder or .gguf file.
    checkpoint: its files on the trainer's machine.
    tuned: the names of the parameters in θ.
    """

    name: str
    revision: str | None
    checkpoint: Checkpoint
    layout: Layout
    tuned: list[str]
    tokenizer: Any

    def here(self, *, trust_remote_code: bool) -> Checkpoint:
        """Return the checkpoint on this machine: from the trainer's path, or else by its name.

        Raises:
            ModelError: it is not on this machine, or is another model.
        """
        folder = self.checkpoint.folder
        if not (folder / "config.json").is_file():
            folder = resolve(self.name, self.revision, trust_remote_code=trust_remote_code)
        found = open_checkpoint(folder)
        if found.tensors != self.checkpoint.tensors:
            raise ModelError(
                f"{self.name}: the model in {found.folder} on this machine is not the one that "
                "the run began with"
            )
        return found
