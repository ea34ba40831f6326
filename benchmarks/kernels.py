"""Writing a member's weights and updating θ, against a copy of θ, against the usual way, and on two cores against one.

    python -m benchmarks.kernels [--json]

The usual way is torch.randn for each parameter in the model's dtype, added in place, and later made again and
subtracted; its update makes torch.randn for each seed and parameter, sums in fp32, and adds once.

    perturbed_over_copy             bf16 weights of a member ÷ copying θ (fp32) once; at most 2
    usual_over_perturbed            add, then make again and subtract ÷ writing the member (which needs no undoing); at least 10
    usual_over_update               the usual update of 30 seeds ÷ ours; at least 10
    perturbed_scaling_on_two_cores  writing a member with one thread ÷ with two; at least 1.8
    update_scaling_on_two_cores     the update with one thread ÷ with two; at least 1.8
"""

from functools import partial

import torch

from benchmarks.common import best_of, checkpoint, options, show
from estune.common.resources import cores
from estune.common.types import Member
from estune.theta.parameters import layout
from estune.theta.theta import Theta

SEEDS = 30
MEMBER = Member(7, 1, 1e-3, "iid", 0)


def main() -> None:
    asked = options(__doc__)
    seeds, rounds = (2, 1) if asked.quick else (SEEDS, 5)
    base = checkpoint(asked.model)
    theta = Theta.load(base, layout(base).targets(None))
    model = {name: values.to(torch.bfloat16) for name, values in theta.tensors.items()}
    figures = members(theta, model, rounds) | updates(theta, model, seeds)
    show(figures, asked.json)


def members(theta: Theta, model: dict[str, torch.Tensor], rounds: int) -> dict[str, float | str]:
    copy = {name: values.clone() for name, values in theta.tensors.items()}
    copied, perturbed, usual = best_of(
        rounds,
        partial(copy_all, theta.tensors, copy),
        partial(write, theta, model),
        partial(usual_member, model),
    )
    one, two = (partial(write, Theta(theta.tensors, threads=threads), model) for threads in (1, 2))
    return {
        "perturbed_over_copy": perturbed / copied,
        "usual_over_perturbed": usual / perturbed,
        "perturbed_scaling_on_two_cores": scaling(rounds, one, two),
        "copy_seconds": copied,
        "perturbed_seconds": perturbed,
    }


def updates(theta: Theta, model: dict[str, torch.Tensor], seeds: int) -> dict[str, float | str]:
    updated, usual = best_of(2, partial(update, theta, seeds), partial(usual_update, model, seeds))
    one, two = (partial(update, Theta(theta.tensors, threads=threads), seeds) for threads in (1, 2))
    return {
        "usual_over_update": usual / updated,
        "update_scaling_on_two_cores": scaling(3, one, two),
        "update_seconds": updated,
    }


def scaling(rounds: int, one: partial[None], two: partial[None]) -> float | str:
    """Seconds with one thread ÷ seconds with two."""
    if cores() < 2:
        return "needs two cores, and this process may use one"
    alone, both = best_of(rounds, one, two)
    return alone / both


def copy_all(theta: dict[str, torch.Tensor], copy: dict[str, torch.Tensor]) -> None:
    for name, values in theta.items():
        copy[name].copy_(values)


def write(theta: Theta, model: dict[str, torch.Tensor]) -> None:
    for _ in theta.perturbed(MEMBER, model.__getitem__):
        pass


def update(theta: Theta, seeds: int) -> None:
    theta.update(list(range(seeds)), [1e-7] * seeds, noise="iid", version=theta.version)


def usual_member(model: dict[str, torch.Tensor]) -> None:
    usual_step(model, 1e-3)
    usual_step(model, -1e-3)


def usual_step(model: dict[str, torch.Tensor], sigma: float) -> None:
    generator = torch.Generator(device_of(model)).manual_seed(7)
    for weights in model.values():
        weights.add_(
            torch.randn(
                weights.shape, generator=generator, dtype=weights.dtype, device=weights.device
            ),
            alpha=sigma,
        )


def usual_update(model: dict[str, torch.Tensor], seeds: int) -> None:
    generators = [torch.Generator(device_of(model)).manual_seed(seed) for seed in range(seeds)]
    for weights in model.values():
        delta = torch.zeros(weights.shape, device=weights.device)
        for generator in generators:
            delta.add_(
                torch.randn(weights.shape, generator=generator, device=weights.device), alpha=1e-7
            )
        weights.add_(delta.to(weights.dtype))


def device_of(model: dict[str, torch.Tensor]) -> torch.device:
    return next(iter(model.values())).device


if __name__ == "__main__":
    main()
