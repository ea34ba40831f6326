"""A member is written into tensors that are not contiguous with the same bits, in small parts."""

import itertools

import pytest
import torch

from estune.common.types import Candidate, Member, Unperturbed
from estune.errors import ModelError
from estune.theta import writer
from estune.theta.theta import Theta

SHAPES = {"norm": (5,), "experts": (3, 20, 14), "matrix": (33, 21), "cube": (2, 3, 4, 5)}
VARIANTS = [
    Member(9, -1, 1e-2, "iid", 0),
    Unperturbed(0),
    Candidate((3, 4), (0.5, -0.25), "correlated", 0),
]


def make():
    generator = torch.Generator().manual_seed(1)
    return Theta({name: torch.randn(each, generator=generator) for name, each in SHAPES.items()})


def transposed(name, dtype):
    """A tensor of the parameter's shape whose last two axes are swapped in memory."""
    shape = SHAPES[name]
    if len(shape) == 1:
        return torch.empty(2 * shape[0], dtype=dtype)[::2]
    return torch.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype).transpose(-1, -2)


def written(variant, empty):
    held = {name: empty(name) for name in SHAPES}
    list(make().perturbed(variant, held.__getitem__))
    return held


CASES = list(itertools.product([1 << 21, 300, 97], VARIANTS, [torch.float32, torch.bfloat16]))
# One element per job is slow, so once must do.
CASES.append((1, VARIANTS[0], torch.float32))


@pytest.mark.parametrize(("job", "variant", "dtype"), CASES)
def test_strided_tensors_get_the_same_weights(monkeypatch, job, variant, dtype):
    monkeypatch.setattr(writer, "HOST_JOB", job)
    plain = written(variant, lambda name: torch.empty(SHAPES[name], dtype=dtype))
    strided = written(variant, lambda name: transposed(name, dtype))
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    assert all(torch.equal(plain[name], strided[name]) for name in SHAPES)


def test_the_scratch_memory_is_at_most_one_expert(monkeypatch):
    sizes = []
    write = writer._write
    monkeypatch.setattr(
        writer, "_write", lambda *args: sizes.append(args[-1].numel()) or write(*args)
    )
    theta = Theta({"experts": torch.randn(6, 20, 14)})
    held = torch.empty(6, 14, 20).transpose(1, 2)
    list(theta.perturbed(VARIANTS[0], lambda name: held))
    assert max(sizes) == 20 * 14


def test_an_overflow_in_a_strided_tensor_is_noticed():
    theta = Theta({"experts": torch.full((2, 3, 4), 60_000.0)})
    held = torch.empty(2, 4, 3, dtype=torch.float16).transpose(1, 2)
    with pytest.raises(ModelError, match=r"experts overflows torch.float16"):
        list(theta.perturbed(Member(9, 1, 5e4, "iid", 0), lambda name: held))
