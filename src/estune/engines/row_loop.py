"""Complete rows with a transformers model while others come and go.

A tool-using model takes turns, and a program asks when it likes: prompts arrive while others are
being completed. Between two calls of `generate`, each of a few tokens, rows that have ended leave
the batch and new ones join it.
"""

import gc
import logging
from collections.abc import Container
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from estune.common.guard import reason
from estune.common.types import Sampling
from estune.engines.batch import Batch, Row
from estune.engines.cache_reuse import Reuse
from estune.engines.sampling import Drawn
from estune.engines.stops import Stopped
from estune.errors import EngineError, EstuneError

logger = logging.getLogger(__name__)

_STEPS = 8  # tokens per call of generate


class RowLoop:
    """The rows that a model is completing, and those that wait.

    Args:
        model: a causal LM of transformers.
        reuse: what the model allows to reuse.
        pad: the token to pad with.
        ends: the tokens that end a completion.
        most: how many rows may be in the model at a time. Halved when memory runs out.
    """

    def __init__(self, model: Any, reuse: Reuse, pad: int, ends: set[int], most: int) -> None:
        self.most = most
        self._model = model
        self._reuse = reuse
        self._pad = pad
        self._ends = ends
        self._open: dict[int, Row] = {}  # all that have not ended, by number
        self._waiting: list[Row] = []  # those of them that are not in a batch
        self._batches: list[Batch] = []
        self._ended: list[Row] = []  # since the last step

    @property
    def busy(self) -> bool:
        """Whether any row has not ended."""
        return bool(self._open)

    def submit(self, row: Row) -> None:
        """Let a row wait for the next step."""
        self._open[row.number] = row
        self._waiting.append(row)

    def abort(self, numbers: Container[int]) -> None:
        """Forget the rows with these numbers."""
        self._open = {number: row for number, row in self._open.items() if number not in numbers}
        self._waiting = [row for row in self._waiting if row.number not in numbers]
        for batch in self._batches:
            batch.keep([i for i, row in enumerate(batch.rows) if row.number not in numbers])
        self._drop_empty()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Add some tokens to every row; return the rows that have ended.

        Raises:
            EngineError: the model failed.
        """
        try:
            self._admit()
            for batch in self._batches:
                self.extend(batch, _STEPS)
        except EstuneError:
            raise
        except Exception as error:  # a model's own code may raise anything
            self._shrink(error)
        self._drop_empty()
        ended, self._ended = self._ended, []
        return ended

    def extend(self, batch: Batch, tokens: int, processors: tuple[Any, ...] = ()) -> None:
        """Add up to `tokens` to each row of a batch, and remove the rows that have ended."""
        width = batch.ids.shape[1]
        rooms = [row.budget - len(row.new) for row in batch.rows]
        settings = {}
        if batch.cache is None:
            tokens = max(rooms)
        else:
            tokens = min(*rooms, tokens)
            settings = {self._reuse.argument: batch.cache}
        watch = _FiniteRows()
        stops, before = [row.stops for row in batch.rows], [row.new for row in batch.rows]
        stop = Stopped(stops, before, width)
        ids = self._model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            generation_config=greedy(tokens, self._ends, self._pad),
            stopping_criteria=[stop] if any(stops) else None,
            logits_processor=[watch, *_drawn(batch.rows, width, tokens), *processors],
            **batch.features,
            **settings,
        )
        batch.extend(ids)
        for row, finite in zip(batch.rows, watch.finite.expand(len(ids)).tolist(), strict=True):
            row.finite &= finite
        self._leave(batch, stop.rows.tolist())

    def _leave(self, batch: Batch, stopped: list[bool]) -> None:
        """Remove the rows that have ended from the batch."""
        others = []
        for position, row in enumerate(batch.rows):
            over = stopped[position] or batch.cache is None or len(row.new) >= row.budget
            if over or not self._ends.isdisjoint(row.new):
                self._open.pop(row.number, None)
                self._ended.append(row)
            else:
                others.append(position)
        batch.keep(others)

    def _admit(self) -> None:
        """Bring waiting rows of one kind into the model, as many as there is room for."""
        room = self.most - sum(len(batch.rows) for batch in self._batches)
        if not self._waiting or room < 1:
            return
        kind = self._waiting[0].inputs.kind
        chosen = [row for row in self._waiting if row.inputs.kind == kind][:room]
        numbers = {row.number for row in chosen}
        self._waiting = [row for row in self._waiting if row.number not in numbers]
        fresh = Batch(self._model, self._reuse, chosen, self._pad)
        mates = next((batch for batch in self._batches if batch.open and fresh.open), None)
        if mates is None:
            self._batches.append(fresh)
            return
        self.extend(fresh, 1)  # which computes the prompts
        if fresh.rows:
            mates.join(fresh)

    def _shrink(self, error: Exception) -> None:
        """After running out of memory begin all rows again, half as many at a time.

        Raises:
            EngineError: it was another error, or there was only one row.
        """
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not exhausted and "allocate memory" not in str(error).lower():
            raise EngineError(f"the model failed to generate ({reason(error)})") from error
        if self.most == 1:
            raise EngineError(
                "out of memory with one sequence at a time: lower max_completion_length, "
                "or use a smaller model or dtype"
            ) from error
        self.most //= 2
        self._batches = []
        self._waiting = list(self._open.values())
        for row in self._waiting:
            row.restart()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _drop_empty(self) -> None:
        self._batches = [batch for batch in self._batches if batch.rows]


class _FiniteRows:
    """A logits processor that changes nothing.

    Attributes:
        finite: whether the largest logit of each row was always finite (B,).
    """

    def __init__(self) -> None:
        self.finite = torch.tensor(True)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.finite = self.finite.to(scores.device) & torch.isfinite(scores.amax(-1))
        return scores


def _drawn(rows: list[Row], width: int, tokens: int) -> list[Drawn]:
    """Return the processors that draw the next tokens of the rows that are not greedy."""
    groups: dict[Sampling, list[int]] = {}
    for position, row in enumerate(rows):
        if row.sampling:
            groups.setdefault(replace(row.sampling, n=1, seed=0), []).append(position)
    return [
        Drawn(some, np.stack([rows[i].uniform(tokens) for i in some]), sampling, width)
        for sampling, some in groups.items()
    ]


def greedy(budget: int, ends: set[int], pad: int) -> Any:
    """Return the generation config for at most `budget` tokens."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, max_new_tokens=budget, eos_token_id=sorted(ends) or None, pad_token_id=pad
    )
