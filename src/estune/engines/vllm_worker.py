"""The part of the engine in vLLM's worker processes: it maps θ and loads variants of it.

Weights go in by their names in the checkpoint, through vLLM's own reloading (`vllm_reload.py`).
Direct writing (`vllm_direct_writer.py`) skips reloading. It is used for the layers in which
`VariantLoader.check` found that it gives the same weights.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from estune.common.resources import cores, release_freed_memory
from estune.common.types import Variant, variant_from_json
from estune.engines.base import wrong_weights
from estune.engines.vllm_copy_trace import CopyTrace
from estune.engines.vllm_direct_writer import DirectWriter
from estune.engines.vllm_layers import is_familiar, text_model
from estune.engines.vllm_reload import Reloader, round_biases
from estune.engines.vllm_responses import responses
from estune.engines.vllm_weight_map import WeightMap, kind_of
from estune.errors import EngineError
from estune.theta.checkpoint import Checkpoint, open_checkpoint
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta

# How often direct writing is tried, each time without the layers that were wrong.
_ATTEMPTS = 3


class WorkerExtension:
    """A mixin that vLLM adds to its worker class. The engine calls the methods by name."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    _estune: "VariantLoader | None" = None

    def estune_attach(
        self, theta: dict[str, Any] | Theta, folder: str, aliases: dict[str, str], ranks: int
    ) -> None:
        """Map θ. Weights that ES does not tune are read from the files in `folder`."""
        if not isinstance(theta, Theta):
            theta = Theta.attach(Address(**theta), threads=max(1, cores() // ranks))
        checkpoint = open_checkpoint(Path(folder))
        frozen = [
            (name, checkpoint.read(name))
            for name in checkpoint.tensors
            if aliases.get(name, name) not in theta.tensors
        ]
        self._estune = VariantLoader(self, theta, frozen, checkpoint)

    def estune_load(self, record: dict[str, Any]) -> None:
        """Take the weights of a variant in JSON form."""
        assert self._estune
        self._estune.load(variant_from_json(record))

    def estune_check(self, record: dict[str, Any]) -> dict[str, int]:
        """Run `VariantLoader.check` for a variant in JSON form."""
        assert self._estune
        return self._estune.check(variant_from_json(record))

    def estune_reloaded(self) -> list[str]:
        """Return the tensors that vLLM reloads, those that are not written directly."""
        assert self._estune
        return sorted(self._estune.reloaded)

    def estune_familiar(self) -> bool:
        """Whether comparing the layers' outputs proves the weights, without comparing logits."""
        return is_familiar(self.model_runner.get_model())

    def estune_files(self) -> None:
        """Load the weights in the checkpoint's files, those of θ included."""
        assert self._estune
        self._estune.load_files()

    def estune_alter(self, record: dict[str, Any], kind: str, altered: bool) -> bool:
        """Run `VariantLoader.alter` for a variant in JSON form."""
        assert self._estune
        return self._estune.alter(variant_from_json(record), kind, altered)

    def estune_watch(self) -> None:
        """Begin to keep what the model computes."""
        model = self.model_runner.get_model()
        LogitsWatch.of(model).digest = hashlib.blake2b(digest_size=16)

    def estune_seen(self) -> str | None:
        """Return a digest of all logits since `estune_watch`."""
        watch = LogitsWatch.of(self.model_runner.get_model())
        seen, watch.digest = watch.digest, None
        return str(seen.hexdigest()) if seen else None

    def estune_finite(self) -> bool:
        """Whether the largest logits were always finite since the last call."""
        return self._estune is None or self._estune.logits.were_finite()

    def estune_empty_cache(self) -> None:
        """Put zeros where a member left NaN in the cache of keys and values.

        Attention multiplies empty slots by 0, and 0 · NaN is NaN.
        """
        for layer in self.model_runner.kv_caches:
            for cache in layer if isinstance(layer, (list, tuple)) else [layer]:
                cache.zero_()


class VariantLoader:
    """Loads variants of θ into the model of one worker.

    Args:
        worker: vLLM's worker.
        theta: θ, mapped in this process.
        frozen: the weights that ES does not tune.
        checkpoint: the base model's files.

    Attributes:
        dtypes: the dtype in which vLLM holds each parameter, as a check has found.
        direct: writes variants straight to where vLLM keeps weights; None unless proven right.
        logits: watches the model's logits.
    """

    def __init__(
        self,
        worker: WorkerExtension,
        theta: Theta,
        frozen: list[tuple[str, torch.Tensor]],
        checkpoint: Checkpoint,
    ) -> None:
        self._worker = worker
        self._theta = theta
        self._frozen = frozen
        self._checkpoint = checkpoint
        self._reloader = Reloader(self.model, worker.vllm_config)
        self._map = WeightMap([])
        self.dtypes: dict[str, torch.dtype] = {}
        self.direct: DirectWriter | None = None
        self.logits = LogitsWatch.of(self.model)

    @property
    def model(self) -> Any:
        return self._worker.model_runner.get_model()

    @property
    def reloaded(self) -> set[str]:
        """The tuned tensors that are not written directly."""
        direct = self.direct.names if self.direct else set()
        return {name for name in self._theta.tensors if name in self.dtypes} - direct

    def load(self, variant: Variant) -> None:
        """Take the variant's weights.

        Raises:
            EngineError: a weight was not taken.
        """
        direct = self.direct
        if direct is None:
            self._reloader.load(lambda: self.weights(variant))
            return
        with self._settings(), torch.inference_mode():
            direct.load(self._part(direct.names), variant, self._frozen)
        if direct.modules:
            self._reloader.load(
                lambda: self._some_weights(variant, direct.reloaded), direct.modules
            )
        else:
            round_biases(self.model)

    def load_files(self) -> None:
        """Reload the weights in the checkpoint's files."""
        read = self._checkpoint.read
        self._reloader.load(lambda: ((name, read(name)) for name in self._checkpoint.tensors))

    def check(self, variant: Variant) -> dict[str, int]:
        """Load other weights, then the variant's, and try to write them directly.

        Returns:
            The number of weights of each parameter that vLLM copied.

        Raises:
            EngineError: a part of the model did not change with its weights, or did not hold the
                variant's before.
        """
        self.dtypes = {}
        self.direct = None
        before = responses(self.model)
        self._load_others(variant, frozen=True)
        changed = responses(self.model)
        trace = self._traced_load(variant)
        after = responses(self.model)
        for name, response in before.items():
            if torch.equal(response, changed[name]):
                raise EngineError(f"vLLM does not take new weights in {name}")
            if not torch.equal(response, after[name]):
                raise wrong_weights(variant, name)
        self.dtypes = trace.dtypes
        self._map = WeightMap(trace.copies)
        self._try_direct(trace, variant, after)
        release_freed_memory()
        return dict(trace.taken)

    def alter(self, variant: Variant, kind: str, altered: bool) -> bool:
        """Load the layers that hold tensors of a kind, as loading a member does.

        Args:
            kind: a name of tensors without numbers; see `kind_of`.
            altered: change the tensors of this kind; otherwise they get the variant's values.

        Returns:
            Whether generating text on this rank uses a tensor of this kind.
        """
        names = {name for name in self._theta.tensors if kind_of(name) == kind}
        modules = self._map.closed(self._map.modules_of(names))
        if not modules and self._map.placed:
            return False  # other ranks have them
        changed = names if altered else set()

        def weights(some: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in self._some_weights(variant, some):
                yield name, _unlike(tensor) if name in changed else tensor

        if not self._map.placed:
            every = {*self._theta.tensors, *(name for name, _ in self._frozen)}
            self._reloader.load(lambda: weights(every))
            return True
        direct = self.direct
        slow = modules if direct is None else modules & direct.modules
        if direct and modules - slow:
            with self._settings(), torch.inference_mode():
                direct.write(weights(self._map.names_in(modules - slow)))
        if slow:
            self._reloader.load(lambda: weights(self._map.names_in(slow)), slow)
        round_biases(self.model)
        return not modules.isdisjoint(text_model(self.model).modules())

    def weights(self, variant: Variant) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights of the model by their names in the checkpoint."""
        yield from self._frozen
        yield from self._theta.perturbed(variant, self._empty)

    def _some_weights(
        self, variant: Variant, names: set[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, tensor) for name, tensor in self._frozen if name in names)
        if tuned := names & self._theta.tensors.keys():
            yield from self._part(tuned).perturbed(variant, self._empty)

    def _part(self, names: set[str]) -> Theta:
        """Return θ of some names, so that nothing else is computed."""
        if names == self._theta.tensors.keys():
            return self._theta
        return self._theta.part([name for name in self._theta.tensors if name in names])

    def _traced_load(self, variant: Variant) -> CopyTrace:
        trace = CopyTrace(self.model)
        with trace:
            self._reloader.load(lambda: trace.watched(self.weights(variant)))
        return trace

    def _load_others(self, variant: Variant, *, frozen: bool = False) -> None:
        """Reload weights that differ from the variant's; with `frozen`, also those not tuned."""
        tuned = self._theta.tensors
        self._reloader.load(
            lambda: (
                (name, _unlike(tensor) if frozen or name in tuned else tensor)
                for name, tensor in self.weights(variant)
            )
        )

    def _try_direct(
        self, trace: CopyTrace, variant: Variant, wanted: dict[str, torch.Tensor]
    ) -> None:
        """Find the layers that can be written directly, and do so from now on.

        Other weights are loaded and the variant is written. Layers that come out wrong are left to
        reloading, and it is tried again.
        """
        modules = dict(self.model.named_modules())
        avoided: set[torch.nn.Module] = set()
        for _ in range(_ATTEMPTS):
            writer = DirectWriter.learn(trace, self.model, self._theta.tensors, avoided)
            if writer is None:
                return
            self._load_others(variant)
            self.direct = writer
            self.load(variant)
            found = responses(self.model)
            wrong = [name for name in wanted if not torch.equal(wanted[name], found[name])]
            if not wrong:
                return
            self.direct = None
            avoided |= {modules.get(name) or modules[name.rpartition(".")[0]] for name in wrong}
            self.load(variant)

    def _settings(self) -> AbstractContextManager[Any]:
        from vllm.config import set_current_vllm_config

        settings: AbstractContextManager[Any] = set_current_vllm_config(self._worker.vllm_config)
        return settings

    def _empty(self, name: str) -> torch.Tensor:
        """Return a new tensor for a parameter.

        It must be new each time: vLLM holds it until the rest of its fused layer has arrived. Until
        the dtype in vLLM is known it is fp32 in host memory, since fp32 may not fit on the device.
        """
        shape = self._theta.tensors[name].shape
        dtype = self.dtypes.get(name)
        if dtype is None:
            return torch.empty(shape)
        return torch.empty(shape, dtype=dtype, device=self._worker.device)


def _unlike(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and magnitude with other values.

    They do not differ by a constant, because adding one to all logits does not change a router's
    choice.
    """
    if not tensor.is_floating_point():
        return tensor
    flat = tensor.flatten().float()
    size = float(flat.square().mean().sqrt()) or 0.1
    ramp = torch.linspace(0.5, 1.5, flat.numel(), device=flat.device) * size
    return (ramp - flat).to(tensor.dtype).view_as(tensor)


class LogitsWatch:
    """Wraps the `compute_logits` of a model and notes whether the largest logits are finite."""

    def __init__(self, model: Any) -> None:
        self._compute = model.compute_logits
        self._finite = torch.tensor(True)
        self.digest: Any = None  # a hash of the logits, while they are to be compared
        model.compute_logits = self

    @classmethod
    def of(cls, model: Any) -> "LogitsWatch":
        """Return the watch of a model, which has one at most."""
        watch = vars(model).get("compute_logits")
        return watch if isinstance(watch, cls) else cls(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        logits = self._compute(*args, **kwargs)
        # Only some ranks of a tensor-parallel engine have logits.
        if logits is not None and logits.numel():
            finite = torch.isfinite(logits.amax(-1)).all()
            self._finite = self._finite.to(logits.device) & finite
            if self.digest is not None:
                self.digest.update(logits.float().cpu().numpy().tobytes())
        return logits

    def were_finite(self) -> bool:
        """Whether all were finite since the last call."""
        finite = bool(self._finite)
        self._finite = torch.tensor(True)
        return finite
