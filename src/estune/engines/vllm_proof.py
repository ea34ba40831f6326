"""A proof, by logits, that vLLM computes with the weights that it was given.

It is made for models with experts and with layers that derive something from their weights: there
a weight that was taken may not be the one that is used. One kind of tensor after another, such as
all routers, is changed in the way in which members are loaded: the logits must change. When all
have their values again, the logits must be the first ones, to the bit.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from estune.common.types import Variant, variant_to_json
from estune.engines.vllm_weight_map import kind_of
from estune.errors import ModelError

InWorkers = Callable[..., list[Any]]


class LogitsProof:
    """The logits of a few prompts, compared between weights.

    Args:
        folder: the base model, for messages.
        in_workers: calls a method of `WorkerExtension` in every worker.
        complete: lets the model compute logits of a few prompts.

    Attributes:
        first: the logits of the weights that vLLM loaded from the files, as a digest.
    """

    def __init__(self, folder: Path, in_workers: InWorkers, complete: Callable[[], object]) -> None:
        self._folder = folder
        self._in_workers = in_workers
        self._complete = complete
        self.first = self.logits()

    def logits(self) -> list[Any]:
        """Return a digest per worker of the logits."""
        self._in_workers("estune_watch")
        self._complete()
        return self._in_workers("estune_seen")

    def check_reloading(self) -> None:
        """Reload the files' weights: the logits must be the first.

        Raises:
            ModelError: they are not.
        """
        self._in_workers("estune_files")
        if self.logits() != self.first:
            raise self._refusal("computes something else once it has reloaded the same weights")

    def check_kinds(self, variant: Variant, names: Iterable[str], wanted: list[Any]) -> None:
        """Change one kind of tensor after another, and change it back.

        Args:
            variant: what the engine holds.
            wanted: the logits of this variant before the check altered anything.

        Raises:
            ModelError: a kind of tensor changed nothing, or the logits did not come back.
        """
        record = variant_to_json(variant)
        for kind in dict.fromkeys(map(kind_of, names)):
            needed = any(self._in_workers("estune_alter", record, kind, True))
            changed = self.logits()
            self._in_workers("estune_alter", record, kind, False)
            if needed and changed == wanted:
                raise self._refusal(f"does not compute with new weights in {kind}")
        if self.logits() != wanted:
            raise self._refusal("keeps a trace of weights that were replaced")

    def _refusal(self, what: str) -> ModelError:
        return ModelError(
            f"{self._folder}: vLLM {what}, so members would be wrong; "
            "use engine: transformers for this model"
        )
