"""Compare writing members and updating θ with a copy and with the usual way, on 1 and 2 threads.

    python -m benchmarks.kernels [--json]

The usual way to write a member calls torch.randn for each parameter in the model's dtype, adds the
result in place, and later makes it again and subtracts it. Its update calls torch.randn for each
seed and parameter, sums in fp32, and adds once.

    perturbed_over_copy             writing a member in bf16 ÷ copying θ (fp32) once; at most 2
    usual_over_perturbed            the usual way, adding and subtracting ÷ ours, which needs no
                                    undoing; at least 10
    usual_over_update               the usual update of 30 seeds ÷ ours; at least 10
    perturbed_scaling_on_two_cores  writing a member with one thread ÷ with two; at least 1.8
    update_scaling_on_two_cores     the update with one thread ÷ with two; at least 1.8
"""

from functools import partial

import torch

from benchmarks.common import best_of, checkpoint, options, show
from estune.common.resources import cores
from estune.common.types import Member, ThetaUpdate
from estune.theta.parameters import layout
from estune.theta.theta import Theta

SEEDS = 30
MEMBER = Member(7, 1, 1e-3, "iid", 0)

Weights = dict[str, torch.Tensor]


def main() -> None:
    given = options(__doc__)
    base = checkpoint(given.model)
    theta = Theta.load(base, layout(base).targets(None))
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in theta.tensors.items()}
    figures = member_figures(theta, weights, rounds=1 if given.quick else 5)
    figures |= update_figures(theta, weights, seeds=2 if given.quick else SEEDS)
    show(figures, given.json)


def member_figures(theta: Theta, weights: Weights, rounds: int) -> dict[str, float | str]:
    copy = {name: tensor.clone() for name, tensor in theta.tensors.items()}
    copied, perturbed, usual = best_of(
        rounds,
        partial(copy_all, theta.tensors, copy),
        partial(write, theta, weights),
        partial(usual_member, weights),
    )
    one, two = (partial(write, with_threads(theta, count), weights) for count in (1, 2))
    return {
        "perturbed_over_copy": perturbed / copied,
        "usual_over_perturbed": usual / perturbed,
        "perturbed_scaling_on_two_cores": scaling(rounds, one, two),
        "copy_seconds": copied,
        "perturbed_seconds": perturbed,
    }


def update_figures(theta: Theta, weights: Weights, seeds: int) -> dict[str, float | str]:
    ours = partial(update, theta, seeds)
    updated, usual = best_of(2, ours, partial(usual_update, weights, seeds))
    one, two = (partial(update, with_threads(theta, count), seeds) for count in (1, 2))
    return {
        "usual_over_update": usual / updated,
        "update_scaling_on_two_cores": scaling(3, one, two),
        "update_seconds": updated,
    }


def with_threads(theta: Theta, threads: int) -> Theta:
    return Theta(theta.tensors, threads=threads)


def scaling(rounds: int, one: partial[None], two: partial[None]) -> float | str:
    """Return seconds with one thread ÷ seconds with two."""
    if cores() < 2:
        return "needs two cores, but this process may use only one"
    alone, both = best_of(rounds, one, two)
    return alone / both


def copy_all(source: Weights, target: Weights) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)


def write(theta: Theta, weights: Weights) -> None:
    for _ in theta.perturbed(MEMBER, weights.__getitem__):
        pass


def update(theta: Theta, seeds: int) -> None:
    theta.update(
        ThetaUpdate(list(range(seeds)), [1e-7] * seeds, noise="iid", version=theta.version)
    )


def usual_member(weights: Weights) -> None:
    usual_step(weights, 1e-3)
    usual_step(weights, -1e-3)


def usual_step(weights: Weights, sigma: float) -> None:
    device = device_of(weights)
    generator = torch.Generator(device).manual_seed(7)
    for tensor in weights.values():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=device)
        tensor.add_(noise, alpha=sigma)


def usual_update(weights: Weights, seeds: int) -> None:
    device = device_of(weights)
    generators = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
    for tensor in weights.values():
        delta = torch.zeros(tensor.shape, device=device)
        for generator in generators:
            noise = torch.randn(tensor.shape, generator=generator, device=device)
            delta.add_(noise, alpha=1e-7)
        tensor.add_(delta.to(tensor.dtype))


def device_of(weights: Weights) -> torch.device:
    return next(iter(weights.values())).device


if __name__ == "__main__":
    main()
