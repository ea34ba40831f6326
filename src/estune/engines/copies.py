"""Proof that an engine took weights: what of each tensor that it was handed was copied, whatever its loaders did with it."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which of our tensors are copied into weights, how much of each, and into what dtype.

    Some loaders cut or convert a tensor first, so what is made from one of ours counts as that one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: dict[str, int] = defaultdict(int)
        self.dtypes: dict[str, torch.dtype] = {}
        self._names: dict[int, str] = {}  # address of a tensor's memory → whose it is, while it lives
        self._alive: Counter[int] = Counter()  # address → tensors that share this memory

    def each(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._note(name, tensor)
            yield name, tensor

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        ours = [name for arg in args if isinstance(arg, torch.Tensor) and (name := self._names.get(_memory_of(arg)))]
        if function is torch.ops.aten.copy_.default:
            into, source = args[:2]
            name = self._names.get(_memory_of(source))
            if name and into.device.type != "meta":
                self.taken[name] += source.numel()
                self.dtypes[name] = into.dtype
        elif len(set(ours)) == 1 and isinstance(result, torch.Tensor) and result.device.type != "meta":
            self._note(ours[0], result)
        return result

    def _note(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.numel():
            address = _memory_of(tensor)
            self._names[address] = name
            self._alive[address] += 1
            weakref.finalize(tensor, self._gone, address).atexit = False

    def _gone(self, address: int) -> None:
        """Somebody else's tensor may be there next."""
        self._alive[address] -= 1
        if not self._alive[address]:
            del self._alive[address], self._names[address]


def _memory_of(tensor: torch.Tensor) -> int:
    return 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()
