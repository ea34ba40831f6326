"""Generation with transformers, in this process: batched, left-padded, greedy or drawn; on any device that torch has.

A member's weights are written straight into the model's own parameters. Greedy means the most likely token and
nothing else: a repetition penalty or temperature in the model's generation config is set aside, as in TRL and vLLM.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estune.common.guard import guarded, reason
from estune.common.types import Completion, Prompt, Sampling, Variant
from estune.config import ESConfig
from estune.engines import repeatability
from estune.engines.base import compare
from estune.engines.batch import Reuse, Rows
from estune.engines.device import engine_device, engine_dtype
from estune.engines.grouped_attention import group_heads
from estune.engines.sampling import Drawn, sample_seeds
from estune.engines.stops import Stops
from estune.engines.tokens import Tokenizer
from estune.errors import EngineError, EstuneError, ModelError
from estune.theta.theta import Theta

logger = logging.getLogger(__name__)

_SLICE = 8  # tokens between two looks at which rows have ended


class TransformersEngine:
    """A causal LM of transformers as an engine.

    Args:
        folder: the checkpoint.
        in_model: name in the files → name inside the model, from `parameters.layout`.
        config: dtype, device, batch size, stop strings and template settings are taken from it.
        tokenizer: used instead of the one in the folder.
        model: used instead of loading the one in the folder; whoever trains it may go on with that.

    Raises:
        ModelError: the model does not load, or has no chat template although prompts are conversations.
    """

    def __init__(
        self,
        folder: Path,
        in_model: dict[str, str],
        config: ESConfig,
        tokenizer: Any = None,
        model: Any = None,
    ) -> None:
        self._tokenizer = Tokenizer(folder, config, tokenizer)
        self._model = load_model(folder, config, engine_dtype(config)) if model is None else model
        with guarded(ModelError, f"{folder}: transformers cannot generate with this model"):
            if head := self._model.get_output_embeddings():
                head.register_forward_pre_hook(_contiguous)
            if model is None:  # one that was handed over stays as it is
                group_heads(self._model)
            self._reuse = Reuse.of(self._model)
            self._parameters = _parameters(self._model, in_model)
            self._vocabulary = len(self._model.get_input_embeddings().weight)
        logger.log(
            logging.INFO if self._reuse.whole else logging.WARNING, "%s", self._reuse.describe()
        )
        self._pad = self._tokenizer.padding(self._vocabulary)
        self._batch_size = config.generation_batch_size
        self._end = {
            token
            for token in self._tokenizer.ends(self._model.generation_config)
            if token < self._vocabulary
        }
        self._proven = False
        self._model.generation_config = self._greedy(
            1
        )  # else generate would fill in what ours leaves open from the model's own

    @property
    def context_length(self) -> int:
        return int(
            getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
            or 1 << 30
        )

    def read(self, name: str) -> torch.Tensor:
        """The parameter `name`, a view of the model's own."""
        return self._parameters[name]

    def load(self, theta: Theta, variant: Variant) -> None:
        for _ in theta.perturbed(variant, self.read):  # written straight into the model
            pass

    def check(self, theta: Theta, variant: Variant) -> None:
        """Once also that the model can be asked again, and together with others; where not with others, it is asked alone.

        Raises:
            ModelError: what it answers depends on what it was asked before.
        """
        compare(theta, variant, self.read)
        if not self._proven:
            self._check_answers(theta, variant)
            self._proven = True

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(ids) for ids in self._encode(prompts)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        encoded = self._encode(prompts)
        seeds = (
            [seed for ids in encoded for seed in sample_seeds(ids, sampling)] if sampling else []
        )
        encoded = [ids for ids in encoded for _ in range(sampling.n if sampling else 1)]
        room = self.context_length - max(map(len, encoded), default=0)
        budget = min(
            max_completion_length, room
        )  # one for all, so that answers don't depend on the batches
        order = sorted(
            range(len(encoded)), key=lambda i: len(encoded[i])
        )  # alike lengths together pad least
        completions: dict[int, Completion] = {}
        while len(completions) < len(order):
            batch = order[len(completions) : len(completions) + self._batch_size]
            try:
                done = self._generate_batch(
                    [encoded[i] for i in batch],
                    budget,
                    [seeds[i] for i in batch] if sampling else [],
                    sampling,
                )
            except EstuneError:
                raise
            except Exception as error:  # a model's own code may raise anything
                self._shrink(error)
                continue
            completions.update(zip(batch, done, strict=True))
        return [completions[i] for i in range(len(order))]

    def _check_answers(self, theta: Theta, variant: Variant) -> None:
        first, again = (
            self._probe(repeatability.PROMPTS[:1])[0],
            self._probe(repeatability.PROMPTS[:1])[0],
        )
        try:
            compare(theta, variant, self.read)
        except EngineError as error:
            raise ModelError(f"{_changing(self._model, 'its own weights')} ({error})") from error
        if apart := repeatability.difference(first, again):
            if not repeatability.within_rounding(apart, self._model.dtype):
                raise ModelError(_changing(self._model, "what it answers to the same prompt"))
            logger.warning(
                "this model answers the same prompt with other roundings each time, so rewards may differ from run to run"
            )
        beside = self._probe(repeatability.PROMPTS)[0]
        if (
            not repeatability.within_rounding(
                repeatability.difference(first, beside), self._model.dtype
            )
            and self._batch_size > 1
        ):
            logger.warning(
                "this model's answers depend on the other prompts of a batch, so it is asked one prompt at a time"
            )
            self._batch_size = 1

    @torch.inference_mode()
    def _probe(self, prompts: Sequence[Sequence[int]]) -> list[repeatability.Answer]:
        """What the model makes of some token ids, asked in one batch."""
        room = max(1, self.context_length - repeatability.STEPS)
        encoded = [[token % self._vocabulary for token in prompt][:room] for prompt in prompts]
        seen = repeatability.Seen()
        with guarded(EngineError, "the model failed to answer a prompt of a few tokens"):
            rows = Rows(self._model, self._reuse, encoded, self._pad)
            self._extend(rows, max(map(len, encoded)), repeatability.STEPS, [seen])
        return [repeatability.Answer.of(seen, rows.ids, row) for row in range(len(encoded))]

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return self._tokenizer.encode(prompts, self._vocabulary)

    @torch.inference_mode()
    def _generate_batch(
        self, encoded: list[list[int]], budget: int, seeds: list[int], sampling: Sampling | None
    ) -> list[Completion]:
        rows, longest = Rows(self._model, self._reuse, encoded, self._pad), max(map(len, encoded))
        done: dict[int, Completion] = {}
        finite = [True] * len(encoded)
        while rows.left:
            known = _Finite()
            drawn = (
                [Drawn([seeds[row] for row in rows.left], sampling, longest, budget)]
                if sampling
                else []
            )
            over = self._extend(rows, longest, budget, [known, *drawn])
            for place, row in enumerate(rows.left):
                finite[row] &= bool(known.rows[place])
                if over[place]:
                    completion = self._tokenizer.completion(
                        rows.ids[place, longest:].tolist(), self._end, budget
                    )
                    done[row] = replace(completion, finite=finite[row])
            rows.keep([place for place, ended in enumerate(over) if not ended])
        return [done[row] for row in range(len(encoded))]

    def _extend(self, rows: Rows, longest: int, budget: int, processors: list[Any]) -> list[bool]:
        """Generate some more tokens, and tell which rows have ended."""
        room = longest + budget - rows.ids.shape[1]
        stop = Stopped(self._tokenizer.stops, longest) if self._tokenizer.stops else None
        ids = self._model.generate(
            input_ids=rows.ids,
            attention_mask=rows.mask,
            generation_config=self._greedy(room if rows.cache is None else min(room, _SLICE)),
            stopping_criteria=[stop] if stop else None,
            logits_processor=processors,
            **({} if rows.cache is None else {self._reuse.argument: rows.cache}),
        )
        rows.grow(ids)
        if ids.shape[1] == longest + budget:
            return [True] * len(ids)
        over = torch.isin(
            ids[:, longest:], torch.tensor([*self._end], dtype=ids.dtype, device=ids.device)
        ).any(1)
        return (over | stop.rows if stop else over).tolist()

    def _greedy(self, budget: int) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            max_new_tokens=budget,
            eos_token_id=sorted(self._end) or None,
            pad_token_id=self._pad,
        )

    def _shrink(self, error: Exception) -> None:
        """Halve the batch after running out of memory; anything else is an error of the model's."""
        words = str(error).lower()
        out_of_memory = (
            isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in words
        )
        if not out_of_memory:
            raise EngineError(f"the model failed to generate ({reason(error)})") from error
        if self._batch_size == 1:
            raise EngineError(
                "out of memory with one sequence at a time: lower max_completion_length, or use a smaller model or dtype"
            ) from error
        self._batch_size = max(1, self._batch_size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Stopped:
    """A stopping criterion that ends the rows with a stop string in their last tokens, and notes which they are.

    transformers' own compares tokens with strings, and fails on tokenizers that don't spell their tokens as they decode them.
    """

    def __init__(self, stops: Stops, prompt_length: int) -> None:
        self._stops, self._prompt_length = stops, prompt_length
        self.rows = torch.tensor(False)  # (B,), whether each has ever had one

    def __call__(self, ids: torch.Tensor, scores: Any, **settings: Any) -> torch.Tensor:
        found = [self._ends(row) for row in ids[:, self._prompt_length :].tolist()]
        self.rows = self.rows.to(ids.device) | torch.tensor(found, device=ids.device)
        return self.rows

    def _ends(self, new: list[int]) -> bool:
        """Looks at the last tokens first, since a whole row takes longer to decode each time."""
        return self._stops.found(new[-self._stops.window :]) and self._stops.found(new)


def stopped(tokenizer: Tokenizer, stop: Sequence[str], prompt_length: int) -> Stopped:
    """The criterion for other stop strings than those of the run."""
    return Stopped(Stops(tokenizer.inner, stop), prompt_length)


def load_model(folder: Path, config: ESConfig, dtype: torch.dtype) -> Any:
    """The causal LM in `folder`, for inference on the config's device. Raises ModelError when transformers cannot load it."""
    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            **(config.model_init_kwargs or {}),
        )
        if getattr(model.config, "rescale_every", 0):
            model.config.rescale_every = (
                0  # RWKV would divide its own weights, once, whatever is written into them later
            )
        return model.to(engine_device(config)).eval().requires_grad_(False)


def _parameters(model: Any, in_model: dict[str, str]) -> dict[str, torch.Tensor]:
    """Name in the files → the model's own tensor."""
    inside = dict(model.named_parameters(remove_duplicate=False))
    if missing := [name for name in in_model.values() if name not in inside]:
        raise ModelError(
            f"transformers' {type(model).__name__} has no parameter {missing[0]}, which the model's files hold"
        )
    return {name: inside[inside_name].data for name, inside_name in in_model.items()}


def _changing(model: Any, what: str) -> str:
    return f"{type(model).__name__} of transformers changes {what} as it generates, so members would not answer as their weights say"


class _Finite:
    """A logits processor that changes nothing, but notes the rows in which the largest logit was ever NaN or infinite."""

    rows = torch.tensor(True)  # (B,)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.rows = self.rows.to(scores.device) & torch.isfinite(scores.amax(-1))
        return scores


def _contiguous(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Pack the hidden states of the last positions: on their strided slice torch would copy the whole output
    embedding once a sequence (0.9 GB and a third of the time for 16 sequences of a 49,152-word model)."""
    return (inputs[0].contiguous(), *inputs[1:])
