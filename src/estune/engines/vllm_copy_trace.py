"""Proof that an engine took weights: what of each tensor that it was handed was copied where, whatever its loaders did with it."""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class View:
    """A tensor within its memory, in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "View":
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def within(self, whole: torch.Tensor) -> torch.Tensor:
        """The same part of another tensor's memory."""
        return whole.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Copy:
    """`part` of the tensor `name` was copied to `place` of a parameter. None: from what was made of the tensor, or to no parameter."""

    name: str
    part: View | None
    parameter: tuple[torch.nn.Module, str] | None
    whole: View | None  # the parameter, as it was then
    place: View
    dtype: torch.dtype


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which of our tensors are copied into weights of `model`, how much of each, and into what dtype.

    Some loaders cut or convert a tensor first, so what is made from one of ours counts as that one.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: dict[str, int] = defaultdict(int)
        self.dtypes: dict[str, torch.dtype] = {}
        self.all: list[Copy] = []
        self._modules = [module for module in model.modules() if module._parameters]
        self._names: dict[
            int, str
        ] = {}  # address of a tensor's memory → whose it is, while it lives
        self._given: set[int] = (
            set()
        )  # addresses of the tensors themselves, rather than of what was made of them
        self._alive: Counter[int] = Counter()  # address → tensors that share this memory

    def each(
        self, weights: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._note(name, tensor)
            self._given.add(_memory_of(tensor))
            yield name, tensor

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        ours = [
            name
            for arg in args
            if isinstance(arg, torch.Tensor) and (name := self._names.get(_memory_of(arg)))
        ]
        if function is torch.ops.aten.copy_.default:
            into, source = args[:2]
            name = self._names.get(_memory_of(source))
            if name and into.device.type != "meta":
                self.taken[name] += source.numel()
                self.dtypes[name] = into.dtype
                self.all.append(self._copy(name, source, into))
        elif (
            len(set(ours)) == 1
            and isinstance(result, torch.Tensor)
            and result.device.type != "meta"
        ):
            self._note(ours[0], result)
        return result

    def _copy(self, name: str, source: torch.Tensor, into: torch.Tensor) -> Copy:
        part = View.of(source) if _memory_of(source) in self._given else None
        for module in self._modules:
            for own, parameter in module._parameters.items():
                if (
                    parameter is not None
                    and parameter.numel()
                    and _memory_of(parameter) == _memory_of(into)
                ):
                    return Copy(
                        name, part, (module, own), View.of(parameter), View.of(into), into.dtype
                    )
        return Copy(name, part, None, None, View.of(into), into.dtype)

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
            self._given.discard(address)
            del self._alive[address], self._names[address]


def _memory_of(tensor: torch.Tensor) -> int:
    return 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()
