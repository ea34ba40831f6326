"""The Triton kernels in a process of their own, since Triton decides on import where they run.

Run by tests/noise/test_noise_triton.py. `bits FILE` writes their results, on a CPU under
TRITON_INTERPRET=1, otherwise on the GPU. `assembly` prints how many fused multiply-adds they
contain when compiled for an H100, which needs no GPU.
"""

import json
import sys

import numpy as np
import torch

SEEDS = [0, 7, 2**32, 2**63 + 5, 2**64 - 1]
T = 2**64 - 3
STARTS = [0, 1, 8, 4099, 8 * 2**32 - 3, 8 * 2**33 + 13]
SIZES = [0, 1, 3, 8, 2047, 5000]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COEFFICIENTS = [0.3, -1e-3, 0.0, 2.5e-7, -0.7]
SIGMA = float(np.float32(0.013))


def theta(size: int) -> np.ndarray:
    """Weights of very different sizes, so that a fused product, or another order, shows."""
    random = np.random.default_rng(size)
    return (random.standard_normal(size) * 10.0 ** random.integers(-6, 2, size)).astype(np.float32)


def bits() -> dict[str, np.ndarray]:
    from estune.noise import triton as kernels

    device = torch.device("cpu" if kernels.INTERPRETED else "cuda")
    found = {}
    for start in STARTS:
        for size in SIZES:
            weights = torch.tensor(theta(size), device=device)
            for name, dtype in DTYPES.items():
                out = torch.empty(size, dtype=dtype, device=device)
                assert kernels.perturb(weights, SIGMA, SEEDS[3], T, start, out)
                found[f"perturb {name} {start} {size}"] = out.float().cpu().numpy()
            kernels.update(weights, COEFFICIENTS, SEEDS, T, start)
            found[f"update {start} {size}"] = weights.cpu().numpy()
    for name, dtype in DTYPES.items():
        large = torch.zeros(3000, device=device)
        large[2999] = torch.finfo(dtype).max
        outs = [torch.empty(3000, dtype=dtype, device=device) for _ in range(2)]
        huge = float(np.float32(3e38))
        found[f"finite {name}"] = np.array(
            [
                bool(kernels.perturb(large * 0, SIGMA, 1, T, 0, outs[0])),
                bool(kernels.perturb(large, huge, 1, T, 0, outs[1])),
            ]
        )
    return found


def assembly() -> dict[str, list[int]]:
    """Fused multiply-adds as launched, and with fusion on, which shows that they would be seen."""
    from estune.noise import triton as kernels

    where = {"first": "i64", "size": "i32", "SKIPPED": "constexpr", "SIZE": "constexpr"}
    keys = {"k0": "i64", "k1": "i64", "t0": "i64", "t1": "i64"}
    found = {}
    for out in ("*i16", "*fp16", "*fp32"):
        arguments = {
            "theta": "*fp32",
            "out": out,
            "overflown": "*i32",
            "table": "*fp32",
            "scale": "fp32",
            **keys,
            **where,
        }
        found[f"perturb {out}"] = _fused(kernels._perturb, arguments)
    arguments = {
        "theta": "*fp32",
        "table": "*fp32",
        "factors": "*fp32",
        "keys": "*i32",
        "seeds": "i32",
        "t0": "i64",
        "t1": "i64",
        **where,
    }
    found["update"] = _fused(kernels._update, arguments)
    return found


def _fused(kernel, arguments: dict[str, str]) -> list[int]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from estune.noise import triton as kernels

    names = list(arguments)
    source = ASTSource(
        kernel, arguments, {(names.index("SIZE"),): kernels._SIZE, (names.index("SKIPPED"),): 0}
    )
    options = [kernels.LAUNCH, kernels.LAUNCH | {"enable_fp_fusion": True}]
    return [
        compile(source, target=GPUTarget("cuda", 90, 32), options=each).asm["ptx"].count("fma.")
        for each in options
    ]


if __name__ == "__main__":
    if sys.argv[1] == "assembly":
        print(json.dumps(assembly()))
    else:
        np.savez(sys.argv[2], **bits())
