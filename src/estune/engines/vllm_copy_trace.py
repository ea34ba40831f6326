"""A trace of where a model's loaders copy each tensor, which proves that weights were taken."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class View:
    """The part of its memory that a tensor covers, in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "View":
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def within(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the same part of another tensor's memory."""
        return whole.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Copy:
    """One copy of a tensor, or of a part of it, into a parameter.

    Attributes:
        name: the tensor's name.
        part: the part that was copied; None if something computed from the tensor was copied.
        parameter: the module and the name in it; None if the target is no parameter.
        whole: the whole parameter at that time.
        target: the part of the parameter that was written.
        dtype: of the target.
    """

    name: str
    part: View | None
    parameter: tuple[torch.nn.Module, str] | None
    whole: View | None
    target: View
    dtype: torch.dtype


class CopyTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which of the watched tensors are copied into weights of `model`.

    Some loaders slice or convert a tensor first, so a tensor that is computed from one watched
    tensor counts as that tensor.

    Attributes:
        taken: the number of elements copied, by tensor.
        dtypes: the dtype into which each tensor was copied.
        copies: all copies, in order.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: Counter[str] = Counter()
        self.dtypes: dict[str, torch.dtype] = {}
        self.copies: list[Copy] = []
        self._modules = [module for module in model.modules() if module._parameters]
        self._last: list[torch.nn.Module] = []  # the owner of the last copy, often of the next
        self._names: dict[int, str] = {}  # address of live memory → name of the tensor
        self._given: set[int] = set()  # addresses of the watched tensors themselves
        self._alive: Counter[int] = Counter()  # address → number of tensors with this memory

    def watched(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield `weights` and watch them from then on."""
        for name, tensor in weights:
            self._note(name, tensor)
            self._given.add(_address(tensor))
            yield name, tensor

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.copy_.default:
            self._record(args[1], args[0])
        else:
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            names = {self._names.get(_address(tensor)) for tensor in tensors} - {None}
            parts = result if isinstance(result, (list, tuple)) else [result]  # unbind has several
            for part in parts if len(names) == 1 else ():
                if isinstance(part, torch.Tensor) and part.device.type != "meta":
                    self._note(str(next(iter(names))), part)
        return result

    def _record(self, source: torch.Tensor, into: torch.Tensor) -> None:
        name = self._names.get(_address(source))
        if name is None or into.device.type == "meta":
            return
        self.taken[name] += source.numel()
        self.dtypes[name] = into.dtype
        part = View.of(source) if _address(source) in self._given else None
        parameter, whole = self._owner(into)
        self.copies.append(Copy(name, part, parameter, whole, View.of(into), into.dtype))

    def _owner(self, into: torch.Tensor) -> tuple[tuple[torch.nn.Module, str] | None, View | None]:
        """Return the parameter in whose memory `into` is, and the whole of it."""
        address = _address(into)
        for modules in (self._last, self._modules):
            for module in modules:
                for name, parameter in module._parameters.items():
                    if parameter is None or not parameter.numel():
                        continue
                    if _address(parameter) == address:
                        self._last = [module]
                        return (module, name), View.of(parameter)
        return None, None

    def _note(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.numel():
            address = _address(tensor)
            self._names[address] = name
            self._alive[address] += 1
            weakref.finalize(tensor, self._forget, address).atexit = False

    def _forget(self, address: int) -> None:
        """Drop an address when its last tensor is gone, since another may be allocated there."""
        self._alive[address] -= 1
        if not self._alive[address]:
            self._given.discard(address)
            del self._alive[address], self._names[address]


def _address(tensor: torch.Tensor) -> int:
    return 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()
