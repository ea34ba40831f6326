"""One engine in the trainer's process."""

from collections.abc import Iterator, Sequence

from estune.common.types import Prompt, Sampling, ThetaUpdate, Variant
from estune.theta.theta import Theta
from estune.workers.base import Evaluation, Status, Work, Worker, Workers


class LocalWorkers(Workers):
    """Evaluates members one after another."""

    def __init__(self, theta: Theta, worker: Worker) -> None:
        self._theta = theta
        self._worker = worker

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        for index, member in enumerate(members):
            completions, load, generate, experts = self._worker.evaluate_one(
                member, prompts, max_completion_length=max_completion_length, sampling=sampling
            )
            yield Evaluation(index, completions, (Work(1, load, generate, experts),))

    def update(self, update: ThetaUpdate) -> None:
        self._theta.update(update)

    def status(self) -> Status:
        return Status(1, 1, 1)
