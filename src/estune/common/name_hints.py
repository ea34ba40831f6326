"""What to say when a user gives a setting that estune does not have.

`ADVICE` covers settings of TRL and of earlier versions; for other names, the nearest setting is
suggested.
"""

import difflib

_FORWARD_ONLY = "estune has no gradients and no optimizer, so leave it out"
_GREEDY = "members generate greedily, one completion per prompt, so leave it out"
_NO_POLICY_GRADIENT = "evolution strategies have no policy gradient, so leave it out"
_BATCH = "set batch_size (prompts per step) and generation_batch_size (sequences generated at once)"
_NO_KL = "there is no KL term; weight_decay moves θ back towards the base model"
_NO_SHARDS = "estune has no gradients to shard; set workers: accelerate or ray to use several GPUs"
_IN_WORKERS = "estune runs vLLM inside its workers; set engine: vllm"
_NO_ADAPTERS = "estune tunes whole models; target_parameters limits which parameters"
_NO_QUANTIZATION = "θ is kept in fp32 and the engine's weights in dtype; set dtype"

ADVICE = {
    "fitness": "set pass_k for pass@k; without it fitness is the mean reward",
    "use_vllm": "set engine: vllm",
    "vllm_mode": _IN_WORKERS,
    "vllm_server_base_url": _IN_WORKERS,
    "vllm_server_host": _IN_WORKERS,
    "vllm_server_port": _IN_WORKERS,
    "num_train_epochs": "set max_steps (updates) and batch_size (prompts per update)",
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "generation_kwargs": "completions are greedy; vLLM's own arguments go into engine_kwargs",
    "max_prompt_length": "prompts are never cut; if one is too long, an error names its row",
    "max_length": "set max_completion_length",
    "max_new_tokens": "set max_completion_length",
    "num_generations": "set population_size; only estune eval has --num_generations",
    "temperature": _GREEDY,
    "top_p": _GREEDY,
    "top_k": _GREEDY,
    "min_p": _GREEDY,
    "repetition_penalty": _GREEDY,
    "beta": _NO_KL,
    "epsilon": _NO_POLICY_GRADIENT,
    "loss_type": _NO_POLICY_GRADIENT,
    "scale_rewards": "set prompt_shaping: standardize to divide by each prompt's deviation",
    "num_iterations": _NO_POLICY_GRADIENT,
    "bf16": "set dtype: bfloat16",
    "fp16": "set dtype: float16",
    "tf32": "set dtype",
    "torch_dtype": "set dtype",
    "save_strategy": "set save_steps; the last step is always saved",
    "save_only_model": "set save_total_limit; a run always keeps what it needs to resume",
    "logging_strategy": "set logging_steps",
    "logging_dir": "trackers write into output_dir; set report_to",
    "evaluation_strategy": "set eval_strategy: steps",
    "do_eval": "set eval_strategy: steps",
    "do_train": "estune train always trains, so leave it out",
    "overwrite_output_dir": "choose another output_dir, or set resume_from_checkpoint: true",
    "warmup_ratio": "set warmup_steps",
    "optim": _FORWARD_ONLY,
    "max_grad_norm": _FORWARD_ONLY,
    "adam_beta1": _FORWARD_ONLY,
    "adam_beta2": _FORWARD_ONLY,
    "gradient_accumulation_steps": _FORWARD_ONLY,
    "gradient_checkpointing": _FORWARD_ONLY,
    "deepspeed": _NO_SHARDS,
    "fsdp": _NO_SHARDS,
    "use_peft": _NO_ADAPTERS,
    "use_lora": _NO_ADAPTERS,
    "peft_config": _NO_ADAPTERS,
    "lora_r": _NO_ADAPTERS,
    "load_in_4bit": _NO_QUANTIZATION,
    "load_in_8bit": _NO_QUANTIZATION,
    "attn_implementation": "set model_init_kwargs: {attn_implementation: …}",
    "ref_model": _NO_KL,
    "reward_model_path": "set reward_funcs to the reward model's folder or hub id",
    "model_id": "set model_name_or_path",
    "config_name": "set dataset_config for a dataset's configuration",
    "dataset_split": "set dataset_train_split",
    "max_samples": "set max_train_samples",
    "learning_rate_scheduler": "set lr_scheduler_type",
    "train_batch_size": _BATCH,
}


def nearest(word: str, words: list[str]) -> str:
    """Return the end of a message about the unknown `word`: advice, or the nearest of `words`.

    `word` is a setting (scale_rewards) or a flag (--scale-rewards).
    """
    if found := ADVICE.get(word.lstrip("-").replace("-", "_")):
        return f"; {found}"
    close = difflib.get_close_matches(word.lstrip("-"), words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "; see --help for all settings"
