"""Where transformers puts the tensors of a checkpoint that it converts on loading.

It keeps the experts of a layer in one tensor, for example, although the files have one for each.
Its own converters are asked where the elements go: they are given tensors that hold their own
indices, which are then read from the result. So no layout is written down here, and anything but a
permutation is noticed. Layers of one kind are asked about once, and with a few experts if these
already show where the others are. Engines prove by values that the answers are right.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from estune.common.guard import guarded
from estune.errors import ModelError

_AT_ONCE = 1 << 24  # elements whose positions are noted at a time
_INT32 = 1 << 31
_FEW = 4  # experts that show where the others are
_MOST_RUNS = 1024  # in which a tensor may be cut up


@dataclass(frozen=True)
class Strided:
    """A strided view of a contiguous tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def is_block(self) -> bool:
        """Whether its elements are consecutive, in order."""
        return self.strides == torch.empty(self.shape, device="meta").stride()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this view of `tensor`. Raises ModelError if that is not contiguous."""
        if not tensor.is_contiguous():
            raise ModelError(
                "transformers does not keep this model's fused parameters in one block of memory, "
                "so their parts cannot be written"
            )
        return tensor.as_strided(self.shape, self.strides, tensor.storage_offset() + self.offset)


@dataclass(frozen=True)
class Fragment:
    """Where elements of a file's tensor are in the model.

    inside: name of the parameter or buffer inside the model.
    place: the view of it that holds them.
    part: the view of the file's tensor with the same elements in the same order; None: all of it,
        in the file's shape.
    """

    inside: str
    place: Strided
    part: Strided | None

    @property
    def is_block(self) -> bool:
        """Whether it is a whole tensor of the files, in consecutive elements."""
        return self.part is None and self.place.is_block


@dataclass(frozen=True)
class Group:
    """Tensors of the files that are converted together.

    first: name of the first parameter that they go to.
    names: in the order in which transformers passes them on.
    patterns: the pattern of the converter that each name matches.
    shapes: of each.
    """

    first: str
    names: list[str]
    patterns: list[str]
    shapes: list[tuple[int, ...]]

    def lists(self) -> list[list[int]]:
        """Return the positions in `names` for each pattern: those of one list of experts."""
        return [
            [at for at, pattern in enumerate(self.patterns) if pattern == each]
            for each in dict.fromkeys(self.patterns)
        ]

    def only(self, chosen: list[int]) -> "Group":
        """Return the group with the names at these positions alone."""
        return Group(
            self.first,
            [self.names[at] for at in chosen],
            [self.patterns[at] for at in chosen],
            [self.shapes[at] for at in chosen],
        )


Places = list[list[Fragment]]  # of each tensor of a group


class Loading:
    """Transformers' rules for loading files into `model`, which may be on the meta device."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(model) or []
        self._model = model
        self._state: dict[str, torch.Tensor] = model.state_dict()
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def sort(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], list[Group]]:
        """Return name in the files → name in the model, and the groups that are converted.

        Tensors that the model ignores are in neither.
        """
        from transformers.core_model_loading import dot_natural_key

        renamed: dict[str, str] = {}
        groups: dict[str, Group] = {}
        for name in sorted(shapes, key=dot_natural_key):  # the order in which transformers loads
            inside, pattern = self._rename(name)
            if inside not in self._state:
                continue
            if pattern is None:
                renamed[name] = inside
                continue
            group = groups.setdefault(inside, Group(inside, [], [], []))
            group.names.append(name)
            group.patterns.append(pattern)
            group.shapes.append(shapes[name])
        return renamed, list(groups.values())

    def places(self, groups: Sequence[Group]) -> dict[str, tuple[Fragment, ...]]:
        """Return where each tensor of `groups` goes, by its name in the files.

        Raises:
            ModelError: values are computed or left out, so the files' tensors are not in the model.
        """
        known: dict[Any, tuple[Group, Places]] = {}
        places: dict[str, tuple[Fragment, ...]] = {}
        for group in groups:
            kind = self._kind(group)
            found = self._moved(*known[kind], group) if kind in known else None
            if found is None:
                with suppress(Exception):  # a converter may want all experts
                    found = self._ask_few(group)
            if found is None:
                with guarded(ModelError, f"{group.names[0]}: transformers cannot convert it"):
                    found = self._ask(group)
            known.setdefault(kind, (group, found))
            places |= dict(zip(group.names, map(tuple, found), strict=True))
        return places

    def _rename(self, name: str) -> tuple[str, str | None]:
        """Return the name in the model and the pattern of a converter, as transformers would."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        inside, pattern = rename_source_key(
            name, self._renamings, self._converters, prefix, self._state
        )
        if inside not in self._state and name in self._state:
            return name, None
        return str(inside), pattern

    def _kind(self, group: Group) -> Any:
        """Return what groups of the same layout in different layers have in common."""
        sources = tuple(zip(group.patterns, group.shapes, strict=True))
        return re.sub(r"\d+", "#", group.first), self._state[group.first].shape, sources

    def _moved(self, asked: Group, found: Places, group: Group) -> Places | None:
        """Return the answer for `asked` as one for `group`; None if its parameters differ."""
        moved: dict[str, str] = {}
        for target in {fragment.inside for fragments in found for fragment in fragments}:
            moved[target] = _at(group.first, asked.first, target)
            there = self._state.get(moved[target])
            if there is None or there.shape != self._state[target].shape:
                return None
        return [
            [replace(fragment, inside=moved[fragment.inside]) for fragment in each]
            for each in found
        ]

    def _ask_few(self, group: Group) -> Places | None:
        """Ask about the first experts; return what follows for all, or None if nothing does.

        It follows if the experts of each list are blocks at equal distances that fill the
        parameters together.
        """
        lists = group.lists()
        if min(map(len, lists)) <= _FEW:
            return None
        few = sorted(at for positions in lists for at in positions[:_FEW])
        landed = self._converted(group.only(few))
        if any(not self._differs_in_one_axis(*each) for each in landed.items()):
            return None
        answer = dict(zip(few, _read(group.only(few), landed), strict=True))
        found: Places = [[] for _ in group.names]
        for positions in lists:
            continued = _continued([answer[at] for at in positions[:_FEW]], len(positions))
            if continued is None:
                return None
            for at, fragment in zip(positions, continued, strict=True):
                found[at] = [fragment]
        return found if self._filled([fragments[0] for fragments in found]) else None

    def _ask(self, group: Group) -> Places:
        landed = self._converted(group)
        for name, tensor in landed.items():
            wanted = tuple(self._state[name].shape) if name in self._state else None
            if tensor.shape != wanted:
                raise ModelError(
                    f"{group.names[0]}: with the others in the files it gives {name} the shape "
                    f"{tuple(tensor.shape)}, its config says {wanted}"
                )
        return _read(group, landed)

    def _converted(self, group: Group) -> dict[str, torch.Tensor]:
        """Return what the converter makes of the elements' indices, by name in the model."""
        sizes = [math.prod(shape) for shape in group.shapes]
        dtype = torch.int32 if sum(sizes) < _INT32 else torch.int64
        parts = torch.split(torch.arange(sum(sizes), dtype=dtype), sizes)
        converter = deepcopy(
            next(rule for rule in self._converters if group.patterns[0] in rule.source_patterns)
        )
        for at, part in enumerate(parts):
            tensor = part.view(group.shapes[at])
            converter.add_tensor(group.first, group.names[at], group.patterns[at], tensor)
        made = converter.convert(group.first, model=self._model, config=self._model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def _differs_in_one_axis(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether only the number of experts is not that of the model's parameter."""
        wanted = self._state[name].shape if name in self._state else torch.Size()
        pairs = zip(tensor.shape, wanted, strict=False)
        return tensor.dim() == len(wanted) and sum(ours != theirs for ours, theirs in pairs) == 1

    def _filled(self, fragments: Sequence[Fragment]) -> bool:
        """Whether the blocks `fragments` leave no gap and don't overlap in any parameter."""
        ends = dict.fromkeys((fragment.inside for fragment in fragments), 0)
        for fragment in sorted(fragments, key=lambda fragment: fragment.place.offset):
            if fragment.place.offset != ends[fragment.inside]:
                return False
            ends[fragment.inside] += math.prod(fragment.place.shape)
        return all(self._state[name].numel() == end for name, end in ends.items())


def _at(first: str, asked: str, target: str) -> str:
    """Return the parameter that is to `first` what `target` is to `asked`: in the same module."""
    ours, theirs = asked.split("."), target.split(".")
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    return ".".join(first.split(".")[:same] + theirs[same:])


def _continued(first: Places, count: int) -> list[Fragment] | None:
    """Return `count` blocks at equal distances, of which `first` are the first; None if not."""
    blocks = [fragments[0] for fragments in first if len(fragments) == 1 and fragments[0].is_block]
    if len(blocks) < len(first):
        return None
    start, distance = blocks[0].place.offset, blocks[1].place.offset - blocks[0].place.offset
    continued = [
        replace(blocks[0], place=replace(blocks[0].place, offset=start + distance * at))
        for at in range(count)
    ]
    return continued if continued[: len(blocks)] == blocks else None


def _read(group: Group, landed: Mapping[str, torch.Tensor]) -> Places:
    """Return where each tensor of `group` went.

    Raises:
        ModelError: its indices are not all there once.
    """
    sizes = [math.prod(shape) for shape in group.shapes]
    positions = _positions(list(landed.values()), sum(sizes))
    if positions is None:
        raise ModelError(
            f"{group.names[0]}: transformers computes other values from it on loading, "
            "so it cannot be tuned"
        )
    targets = {name: tensor.numel() for name, tensor in landed.items()}
    return [
        list(_fragments(part.view(shape), targets))
        for part, shape in zip(torch.split(positions, sizes), group.shapes, strict=True)
    ]


def _positions(landed: list[torch.Tensor], total: int) -> torch.Tensor | None:
    """Return where each index is in the concatenation of `landed`; None if it is no permutation."""
    if sum(tensor.numel() for tensor in landed) != total:
        return None
    if any(tensor.dtype not in (torch.int32, torch.int64) for tensor in landed):
        return None
    positions = torch.full((total,), -1, dtype=landed[0].dtype)
    start = 0
    for tensor in landed:
        for part in torch.split(tensor.reshape(-1), _AT_ONCE):
            if int(part.min()) < 0 or int(part.max()) >= total:
                return None
            stop = start + part.numel()
            positions[part.long()] = torch.arange(start, stop, dtype=positions.dtype)
            start = stop
    return None if total and int(positions.min()) < 0 else positions


def _fragments(positions: torch.Tensor, targets: Mapping[str, int]) -> Iterator[Fragment]:
    """Yield a file tensor's fragments.

    Args:
        positions: of its elements among those of all targets, one after the other.
        targets: the size of each.
    """
    flat = positions.reshape(-1)
    start = 0
    for name, size in targets.items():
        here = (flat >= start) & (flat < start + size)
        if bool(here.all()):
            whole = _affine(positions - start)
            if whole is not None:
                yield Fragment(name, whole, None)
                return
        if bool(here.any()):
            own = here.nonzero().view(-1)
            for place, part in _views(flat[here].long() - start, own):
                yield Fragment(name, place, part)
        start += size


def _affine(positions: torch.Tensor) -> Strided | None:
    """Return the view with one stride for each axis of `positions`; None if there is none."""
    if not positions.numel():
        return Strided(tuple(positions.shape), (0,) * positions.dim(), 0)
    first = int(positions.view(-1)[0])
    strides = []
    expected = torch.full((), first, dtype=positions.dtype)
    for axis, size in enumerate(positions.shape):
        stride = int(positions.select(axis, min(1, size - 1)).reshape(-1)[0]) - first
        steps = torch.arange(size, dtype=positions.dtype) * stride
        along = [1] * positions.dim()
        along[axis] = -1
        expected = expected + steps.view(along)
        strides.append(stride)
    if min(strides, default=0) < 0 or not torch.equal(expected, positions):
        return None
    return Strided(tuple(positions.shape), tuple(strides), first)


def _views(positions: torch.Tensor, own: torch.Tensor) -> list[tuple[Strided, Strided]]:
    """Return pairs of views of one shape that list `positions` (of the target) and `own`.

    Raises:
        ModelError: there are too many.
    """
    table = torch.stack([positions, own], 1)  # (n, 2)
    if whole := _nested(table):
        return [whole]
    ends = (table.diff(dim=0) != 1).any(1).nonzero().view(-1) + 1
    if len(ends) >= _MOST_RUNS:
        raise ModelError("transformers scatters its values, so it cannot be tuned")
    runs = torch.tensor_split(table, ends)
    return [
        (Strided((len(run),), (1,), int(run[0, 0])), Strided((len(run),), (1,), int(run[0, 1])))
        for run in runs
    ]


def _nested(table: torch.Tensor) -> tuple[Strided, Strided] | None:
    """Return the view of each column of `table` (n, 2) whose offsets are its rows, if any."""
    first = table[0].tolist()
    shape: list[int] = []
    strides: list[list[int]] = []
    while len(table) > 1:
        step = table[1] - table[0]
        breaks = (table.diff(dim=0) != step).any(1).nonzero()
        run = int(breaks[0]) + 1 if len(breaks) else len(table)
        heads = table[::run]
        rows = heads[:, None] + torch.arange(run)[:, None] * step  # (n / run, run, 2)
        if int(step.min()) < 0 or not torch.equal(rows.flatten(0, 1), table):
            return None
        shape.insert(0, run)
        strides.insert(0, step.tolist())
        table = heads
    place, part = (
        Strided(tuple(shape), tuple(each[column] for each in strides), first[column])
        for column in (0, 1)
    )
    return place, part
