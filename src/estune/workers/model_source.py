"""Where the base model comes from, so that another machine finds it too."""

from dataclasses import dataclass
from typing import Any

from estune.errors import ModelError
from estune.theta.checkpoint import Checkpoint, open_checkpoint, resolve
from estune.theta.parameters import Layout


@dataclass(frozen=True)
class ModelSource:
    """A model as the user named it, as it was found here, and what of it is tuned.

    name: hub id, folder or .gguf file.
    tuned: the names of the parameters in θ.
    """

    name: str
    revision: str | None
    checkpoint: Checkpoint
    layout: Layout
    tuned: list[str]
    tokenizer: Any

    def here(self, *, trust_remote_code: bool) -> Checkpoint:
        """The checkpoint on this machine: at the same path, or where the model's name leads.

        Raises:
            ModelError: it is not here, or is another one.
        """
        if (self.checkpoint.folder / "config.json").is_file():
            found = open_checkpoint(self.checkpoint.folder)
        else:
            found = open_checkpoint(
                resolve(self.name, self.revision, trust_remote_code=trust_remote_code)
            )
        if found.tensors != self.checkpoint.tensors:
            raise ModelError(
                f"{self.name}: the model in {found.folder} on this machine is not the one that the run began with"
            )
        return found
