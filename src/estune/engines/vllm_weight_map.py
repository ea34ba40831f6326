"""Which layers of a vLLM model each tensor fills, as a trace of one load has shown."""

import re
from collections.abc import Iterable

import torch

from estune.engines.vllm_copy_trace import Copy

_NUMBERS = re.compile(r"\.\d+(?=\.|$)")


def kind_of(name: str) -> str:
    """Return a tensor's name without the numbers of layers and experts."""
    return _NUMBERS.sub(".N", name)


class WeightMap:
    """The tensors and the layers of one worker's model.

    Attributes:
        placed: whether every copy went into a parameter, so that its layer is known.
    """

    def __init__(self, copies: Iterable[Copy]) -> None:
        self._modules: dict[str, set[torch.nn.Module]] = {}
        self._names: dict[torch.nn.Module, set[str]] = {}
        self.placed = True
        for copy in copies:
            if copy.parameter is None:
                self.placed = False
                continue
            module, _ = copy.parameter
            self._modules.setdefault(copy.name, set()).add(module)
            self._names.setdefault(module, set()).add(copy.name)

    def modules_of(self, names: Iterable[str]) -> set[torch.nn.Module]:
        """Return the layers that the tensors fill."""
        return set().union(*(self._modules.get(name, set()) for name in names))

    def names_in(self, modules: Iterable[torch.nn.Module]) -> set[str]:
        """Return the tensors that fill the layers."""
        return set().union(*(self._names.get(module, set()) for module in modules))

    def closed(self, modules: Iterable[torch.nn.Module]) -> set[torch.nn.Module]:
        """Return these layers and all that must be loaded with them.

        A layer is loaded with all of its tensors, and a tensor may fill several layers.
        """
        found = set(modules)
        while True:
            more = self.modules_of(self.names_in(found)) | found
            if more == found:
                return found
            found = more
