"""Complete requests with a transformers model while others come and go.

A model that uses tools takes turns, and a program asks when it likes: prompts arrive while others
are being completed. Between two calls of `generate`, each of a few tokens, requests that have ended
leave the batch and new ones join it.
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
from estune.engines.batch import Batch, OpenRequest
from estune.engines.cache_reuse import Reuse
from estune.engines.sampling import Drawn
from estune.engines.stops import Stopped
from estune.errors import EngineError, EstuneError

logger = logging.getLogger(__name__)

_STEPS = 8  # tokens per call of generate


class RequestLoop:
    """The requests that a model is completing, and those that wait.

    Args:
        model: a causal LM of transformers.
        reuse: what the model allows to reuse.
        pad: the token to pad with.
        ends: the tokens that end a completion.
        most: how many requests may be in the model at a time. Halved when memory runs out.
    """

    def __init__(self, model: Any, reuse: Reuse, pad: int, ends: set[int], most: int) -> None:
        self.most = most
        self._model = model
        self._reuse = reuse
        self._pad = pad
        self._ends = ends
        self._open: dict[int, OpenRequest] = {}  # all that have not ended, by number
        self._waiting: list[OpenRequest] = []  # those of them that are not in a batch
        self._batches: list[Batch] = []
        self._ended: list[OpenRequest] = []  # since the last step

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._open)

    def submit(self, request: OpenRequest) -> None:
        """Let a request wait for the next step."""
        self._open[request.number] = request
        self._waiting.append(request)

    def abort(self, numbers: Container[int]) -> None:
        """Forget the requests with these numbers."""
        self._open = {number: one for number, one in self._open.items() if number not in numbers}
        self._waiting = [one for one in self._waiting if one.number in self._open]
        self._ended = [one for one in self._ended if one.number not in numbers]
        for batch in self._batches:
            batch.keep([i for i, one in enumerate(batch.requests) if one.number in self._open])
        self._drop_empty()

    @torch.inference_mode()
    def step(self) -> list[OpenRequest]:
        """Add some tokens to every request; return those that have ended.

        Raises:
            EngineError: the model failed.
        """
        try:
            self._admit()
            for batch in self._batches:
                self._advance(batch, _STEPS)
        except EstuneError:
            raise
        except Exception as error:  # a model's own code may raise anything
            self._shrink(error)
        self._drop_empty()
        ended, self._ended = self._ended, []
        return ended

    def extend(
        self, batch: Batch, tokens: int, processors: tuple[Any, ...] = ()
    ) -> list[OpenRequest]:
        """Add up to `tokens` to each request of a batch; remove and return those that ended."""
        requests, width = batch.requests, batch.ids.shape[1]
        rooms = [one.budget - len(one.new) for one in requests]
        settings = {}
        if batch.cache is None:
            tokens = max(rooms)
        else:
            tokens = min(*rooms, tokens)
            settings = {self._reuse.argument: batch.cache}
        watch = _FiniteRows()
        stops = [one.stops for one in requests]
        stop = Stopped(stops, [one.new for one in requests], width)
        ids = self._model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            generation_config=greedy(tokens, self._ends, self._pad),
            stopping_criteria=[stop] if any(stops) else None,
            logits_processor=[watch, *_drawn(requests, width, tokens), *processors],
            **batch.features,
            **settings,
        )
        batch.extend(ids)
        for one, finite in zip(requests, watch.finite.expand(len(ids)).tolist(), strict=True):
            one.finite &= finite
        return self._leave(batch, stop.rows.tolist())

    def _leave(self, batch: Batch, stopped: list[bool]) -> list[OpenRequest]:
        """Remove the requests that have ended from the batch, and return them."""
        ended = []
        others = []
        for position, request in enumerate(batch.requests):
            over = stopped[position] or batch.cache is None or len(request.new) >= request.budget
            if over or not self._ends.isdisjoint(request.new):
                ended.append(request)
            else:
                others.append(position)
        batch.keep(others)
        return ended

    def _advance(self, batch: Batch, tokens: int) -> None:
        for request in self.extend(batch, tokens):
            del self._open[request.number]
            self._ended.append(request)

    def _admit(self) -> None:
        """Bring waiting requests of one kind into the model, as many as there is room for."""
        room = self.most - sum(len(batch.requests) for batch in self._batches)
        if not self._waiting or room < 1:
            return
        kind = self._waiting[0].inputs.kind
        chosen = [request for request in self._waiting if request.inputs.kind == kind][:room]
        numbers = {request.number for request in chosen}
        self._waiting = [request for request in self._waiting if request.number not in numbers]
        fresh = Batch(self._model, self._reuse, chosen, self._pad)
        mates = next((batch for batch in self._batches if batch.open and fresh.open), None)
        if mates is None:
            self._batches.append(fresh)
            return
        self._advance(fresh, 1)  # which computes the prompts
        if fresh.requests:
            mates.join(fresh)

    def _shrink(self, error: Exception) -> None:
        """After running out of memory begin all requests again, half as many at a time.

        Raises:
            EngineError: it was another error, or there was only one request.
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
        for request in self._waiting:
            request.restart()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _drop_empty(self) -> None:
        self._batches = [batch for batch in self._batches if batch.requests]


class _FiniteRows:
    """A logits processor that changes nothing.

    Attributes:
        finite: whether the largest logit of each request was always finite (B,).
    """

    def __init__(self) -> None:
        self.finite = torch.tensor(True)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.finite = self.finite.to(scores.device) & torch.isfinite(scores.amax(-1))
        return scores


def _drawn(requests: list[OpenRequest], width: int, tokens: int) -> list[Drawn]:
    """Return the processors that draw the next tokens of the requests that are not greedy."""
    groups: dict[Sampling, list[int]] = {}
    for position, request in enumerate(requests):
        if request.sampling:
            groups.setdefault(replace(request.sampling, n=1, seed=0), []).append(position)
    return [
        Drawn(some, np.stack([requests[i].uniform(tokens) for i in some]), sampling, width)
        for sampling, some in groups.items()
    ]


def greedy(budget: int, ends: set[int], pad: int) -> Any:
    """Return the generation config for at most `budget` tokens."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, max_new_tokens=budget, eos_token_id=sorted(ends) or None, pad_token_id=pad
    )
