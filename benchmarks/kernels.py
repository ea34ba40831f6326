"""Writing a member's weights and updating θ, against a copy of θ and against the usual way.

    python -m benchmarks.kernels [--json]

The usual way is torch.randn for each parameter in the model's dtype, added in place, and later made again and
subtracted; its update makes torch.randn for each seed and parameter, sums in fp32, and adds once.

    perturbed_over_copy     bf16 weights of a member ÷ copying θ (fp32) once
    usual_over_perturbed    add, then make again and subtract ÷ writing the member (which needs no undoing)
    usual_over_update       the usual update of 30 seeds ÷ ours
"""

import torch

from benchmarks.common import best_of, checkpoint, options, show
from estune.center import Center
from estune.member import Member
from estune.parameters import layout

SEEDS = 30


def main() -> None:
    asked = options(__doc__)
    base = checkpoint(asked.model)
    center = Center.load(base, layout(base).targets(None))
    model = {name: theta.to(torch.bfloat16) for name, theta in center.theta.items()}
    copy = {name: theta.clone() for name, theta in center.theta.items()}
    member = Member(7, 1, 1e-3, "iid", 0)

    copied = best_of(5, lambda: [copy[name].copy_(theta) for name, theta in center.theta.items()])
    perturbed = best_of(5, lambda: list(center.perturbed(member, model.__getitem__)))
    usual = best_of(2, lambda: (usual_step(model, 1e-3), usual_step(model, -1e-3)))
    updated = best_of(2, lambda: center.update(list(range(SEEDS)), [1e-7] * SEEDS, noise="iid", version=center.version))
    usual_updated = best_of(1, lambda: usual_update(model))
    show(
        {
            "perturbed_over_copy": perturbed / copied,
            "usual_over_perturbed": usual / perturbed,
            "usual_over_update": usual_updated / updated,
            "copy_seconds": copied,
            "perturbed_seconds": perturbed,
            "update_seconds": updated,
        },
        asked.json,
    )


def usual_step(model: dict[str, torch.Tensor], sigma: float) -> None:
    generator = torch.Generator().manual_seed(7)
    for weights in model.values():
        weights.add_(torch.randn(weights.shape, generator=generator, dtype=weights.dtype), alpha=sigma)


def usual_update(model: dict[str, torch.Tensor]) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    for weights in model.values():
        delta = torch.zeros(weights.shape)
        for generator in generators:
            delta.add_(torch.randn(weights.shape, generator=generator), alpha=1e-7)
        weights.add_(delta.to(weights.dtype))


if __name__ == "__main__":
    main()
