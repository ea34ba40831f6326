"""vLLM on this machine: one whole step of the real trainer against the generation in it, and against transformers.

    python -m benchmarks.engines [--json]

    step_over_generation_vllm   wall time of a step (N = 8, 50 Countdown prompts, at most 128 new tokens) ÷ the sum of `generate`
                                in it; at most 1.02
    vllm_over_transformers      new tokens a second of vLLM ÷ those of transformers, one member, the same prompts; at least 2.5

N = 8 stands for 30: loading, generating and the update all go with N, and what is there once a step weighs less at 30.
Of three steps the first also compiles and reads a member back, and the last saves, so the one between them is shown.
Each engine runs in an environment such as users have: vLLM in .venv-vllm, transformers in .venv.
vLLM's cache is 1 GiB, which holds all 50 sequences; by default it would take 4 on a CPU.
"""

from benchmarks.common import child, options, show, vllm_python


def main() -> None:
    asked = options(__doc__)
    size = ("2", "4", "8") if asked.quick else ("8", "50", "128")
    module, vllm_environment = "benchmarks.engines_child", vllm_python()
    run, vllm = (
        child(module, what, asked.model, *size, python=vllm_environment) for what in ("run", "vllm")
    )
    transformers = child(module, "transformers", asked.model, *size)
    show(
        {
            "step_over_generation_vllm": run["step_time"] / run["es/generate_seconds"],
            "vllm_over_transformers": vllm["tokens_per_second"] / transformers["tokens_per_second"],
            "vllm_tokens_per_second": vllm["tokens_per_second"],
            "transformers_tokens_per_second": transformers["tokens_per_second"],
            "tokens_per_completion": vllm["tokens_per_completion"],
        }
        | {
            name: run[f"es/{name}"]
            for name in ("generate_seconds", "load_seconds", "update_seconds")
        },
        asked.json,
    )


if __name__ == "__main__":
    main()
