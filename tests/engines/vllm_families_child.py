"""Members of several families on vLLM, in one process, since its import takes long.

    python tests/engines/vllm_families_child.py FOLDER SETTINGS CASES

A case is [family, fault or null]. The last line of the output is JSON: for each case the error, or
what was compared. Run by test_vllm_experts.py.
"""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import vllm.model_executor.models.registry
from helpers import make_family
from safetensors.torch import load_file, save_file

from estune import ESConfig
from estune.common.types import Member, Unperturbed
from estune.engines import vllm_reload
from estune.engines.vllm import VLLMEngine
from estune.engines.vllm_direct_writer import DirectWriter
from estune.errors import EstuneError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

BASE = Unperturbed(0)
MEMBER = Member(3, 1, 0.05, "iid", 0)
SETTINGS = {
    "vllm_enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 1 << 26, "max_num_seqs": 4},
}
# What vLLM's kernels and configs need that the families' usual shapes do not have.
SHAPES: dict[str, dict[str, Any]] = {
    # So large that tensors are gone before vLLM has loaded the views of them that it keeps.
    "mixtral": {"hidden_size": 512, "intermediate_size": 512},
    "deepseek_v2": {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
    "deepseek_v3": {
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "topk_method": "noaux_tc",
    },
    "qwen3_next": {"linear_key_head_dim": 128, "linear_value_head_dim": 128},
    "afmoe": {
        "score_func": "sigmoid",
        "route_norm": True,
        "route_scale": 1.0,
        "n_group": 1,
        "topk_group": 1,
    },
}
FAULTS = {
    "experts are packed once": (vllm_reload, "_packing_again", lambda experts: nullcontext()),
    "copies into nothing": (
        vllm_reload.Reloader,
        "_find_unbuffered",
        lambda self, loaded: False,
    ),
    "convolutions stay": (vllm_reload, "_packed_convolutions", lambda model: []),
}
engines = []  # kept to the end: vLLM takes what engines share away with the first that goes


def started(folder: Path, settings: dict) -> VLLMEngine:
    checkpoint = open_checkpoint(folder)
    config = ESConfig(**SETTINGS | settings)
    engine = VLLMEngine(checkpoint, layout(checkpoint), config, "cpu", getattr(torch, config.dtype))
    engines.append(engine)
    return engine


def saved(folder: Path, theta: Theta) -> Path:
    """A checkpoint with the member's weights."""
    there = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-member")))
    tensors = load_file(there / "model.safetensors")
    written = theta.perturbed(MEMBER, lambda name: torch.empty(theta.tensors[name].shape))
    tensors.update({name: tensor.clone() for name, tensor in written})
    save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
    return there


def compared(folder: Path, settings: dict) -> dict:
    """What a fresh engine, the member, and the centre again compute."""
    checkpoint = open_checkpoint(folder)
    theta = Theta.load(checkpoint, layout(checkpoint).in_model, share=True)
    engine = started(folder, settings)
    assert engine._proof
    engine.check(theta, BASE)
    reloaded = set().union(*engine._in_workers("estune_reloaded"))
    engine.load(theta, MEMBER)
    member = engine._proof.logits()
    engine.load(theta, BASE)
    back = engine._proof.logits()
    fresh = started(saved(folder, theta), settings)._proof
    assert fresh
    return {
        "member is a fresh engine's": member == fresh.first,
        "centre is the first again": back == engine._proof.first,
        "member differs": member != back,
        "direct": len(theta.tensors) - len(reloaded),
        "tensors": len(theta.tensors),
    }


def main() -> None:
    folder, (settings, cases) = Path(sys.argv[1]), map(json.loads, sys.argv[2:])
    # vLLM would start a process for each family, to look at its class.
    vllm.model_executor.models.registry._run_in_subprocess = lambda look: look()
    results = []
    for number, (family, fault) in enumerate(cases):
        model = make_family(folder / f"{number}-{family}", family, **SHAPES.get(family, {}))
        owner, name, broken = FAULTS[fault] if fault else (DirectWriter, "learn", None)
        whole = vars(owner)[name]
        if fault:
            setattr(owner, name, broken)
        try:
            results.append(compared(model, settings))
        except EstuneError as error:
            results.append({"error": str(error)})
        finally:
            setattr(owner, name, whole)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
