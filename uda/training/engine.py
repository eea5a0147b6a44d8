"""The only training loop and the only predict pass, with devices, precision, schedules and logging."""

import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.progress import progress as show_progress
from uda.data.batch import Batch
from uda.data.images import Images
from uda.data.loaders import Batches, predict_batches
from uda.data.transforms import Transform
from uda.models.backbones import batch_norms, synchronise_batch_norms
from uda.models.network import Network, Prediction
from uda.training.device import loader_workers, settle
from uda.training.memory import room_for, shortage
from uda.training.method import Method
from uda.training.optimization import Optimization
from uda.training.settings import EmaSettings, OptimSettings, RuntimeSettings
from uda.training.teacher import Teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Log = Callable[[str], None]
T = TypeVar("T")


CURE = (
    "the last good checkpoint is kept. Lower the learning rate, set clip_grad or use runtime.precision=fp32, with "
    "another output=... (source.checkpoint=FOLDER/checkpoints/source.safetensors skips the source stage)"
)


class TrainingDivergedError(UserError):
    """The loss or the network is not finite."""


def seed_everything(*keys: int) -> None:
    """Seed all global generators (torch on the CPU and all GPUs, NumPy, Python) from `keys`."""
    _seed_by(_words_of(keys))


def _words_of(keys: Sequence[int]) -> np.ndarray:
    return np.random.SeedSequence(keys).generate_state(2, np.uint64)


def _seed_by(words: np.ndarray) -> None:
    seed = int(words[0] >> np.uint64(1))
    # torch.manual_seed would keep a stack trace for every GPU that is not in use yet.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)  # the current GPU may not be the run's
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(int(words[1] >> np.uint64(32)))  # noqa: NPY002 (a user's code may draw from it)
    random.seed(seed)


def _words_ahead(seed: Sequence[int], first: int, steps: int, rank: int) -> Iterator[np.ndarray]:
    """The words of `seed_everything(*seed, step, rank)` for every step from `first` on.

    They are made many at a time. After a training step the caches are cold, and one alone takes several times as long.
    """
    for start in range(first, steps, 64):
        yield from [_words_of((*seed, step, rank)) for step in range(start, min(start + 64, steps))]


@contextmanager
def generators_restored() -> Iterator[None]:
    """Restore the global generators after work that seeds them. CUDA's are restored only if CUDA was in use before."""
    kept = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        torch.default_generator.set_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@dataclass
class EpochState:
    """Progress within an epoch."""

    step: int = 0
    """Number of finished steps."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum over the finished steps of every scalar that the method reports."""
    window: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and number of every scalar since the last point of the curves of training."""


#: Receives the figures of training: the number of the stage's steps that are done, and the figures by name.
Curves = Callable[[int, dict[str, float]], None]

#: Steps between two looks at a GPU's losses, and at least so many between two points of the curves.
CHECK_EVERY = 20
#: A stage has about so many points at most, besides one at the end of each epoch.
MOST_POINTS = 1000


class Window:
    """Means over the steps since the last point of the curves of training.

    Args:
        sums: sum and number of every scalar so far, of an earlier start.
    """

    def __init__(self, sums: Mapping[str, tuple[float, int]]):
        self.sums = dict(sums)
        self._steps, self._seconds, self._since = 0, 0.0, time.monotonic()

    def add(self, steps: Iterable[Mapping[str, float]]) -> None:
        """Add the scalars of steps. They are added one by one, so that an interruption changes no bit of a mean."""
        for scalars in steps:
            self._steps += 1
            for name, value in scalars.items():
                total, number = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + value, number + 1

    def rest(self) -> None:
        """Stop the clock until `resume`."""
        self._seconds += time.monotonic() - self._since

    def resume(self) -> None:
        """Let the clock go on."""
        self._since = time.monotonic()

    def take(self) -> dict[str, float]:
        """The means, and the seconds per step of this start. A new window begins."""
        self.rest()
        found = {f"training/{name}": total / number for name, (total, number) in self.sums.items()}
        if self._steps:
            found["time/seconds_per_step"] = self._seconds / self._steps
        self.sums, self._steps, self._seconds = {}, 0, 0.0
        self.resume()
        return found


class Pauses(Protocol):
    """Decides when an epoch pauses for a checkpoint."""

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps of the epoch. The answer must be the same in all processes."""

    def save(self, state: EpochState) -> None:
        """Save a checkpoint. May end the run."""


class Engine:
    """Trains a network on one device, and predicts with it.

    Args:
        network: the network. It is moved to the device in place.
        settings: device, precision, memory format etc. The attribute `settings` has every `auto` and null resolved.
        log: receives lines of text.
        ranks: the processes of the job.
    """

    def __init__(
        self, network: Network, settings: RuntimeSettings, log: Log | None = print, ranks: Ranks | None = None
    ):
        self.settings = settle(settings, network)
        self.log = log
        self.ranks = ranks or Ranks()
        self.device = torch.device(self.settings.device)
        self.memory_format = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        if self.device.type == "mps" and self.ranks.world > 1:
            raise UserError("runtime.device: several processes need cuda or cpu, not mps")
        if self.settings.sync_batch_norm and self.ranks.world > 1:
            if self.device.type != "cuda":
                raise UserError("runtime.sync_batch_norm: torch's SyncBatchNorm needs CUDA; set it to false")
            synchronise_batch_norms(network)
        with self.enough_memory("the network", "use a smaller model.backbone"):
            self.network = network.to(self.device, memory_format=self.memory_format)
        self.scratch: Path | None = None
        """Folder for the features of a prediction that are too large for memory. None: the system's temporary files."""
        self.teacher: Teacher | None = None
        """The moving average of the network's weights, once `begin_teacher` was called."""
        self.predicts_with: Network = self.network
        """The network that predictions are made with: `network`, or that of the teacher."""
        self._own = nn.ModuleDict()
        self._further_heads: list[nn.Module] = []
        if self.settings.compile:
            network.compile()  # in place, so that the names of its tensors stay the same

    def attach(self, method: Method) -> None:
        """Move a method's own networks to the device; they replace those of an earlier method.

        From now on training uses the method's precision.
        """
        asked, precision = self.settings.precision, method.precision(self.settings.precision)
        if precision != asked:
            self.settings = self.settings.model_copy(update={"precision": precision})
            if self.log:
                self.log(
                    f"precision {precision} instead of {asked}, for the inner gradients of {type(method).__name__}"
                )
        self._own = method.modules.to(self.device)
        self._further_heads = [self._own[name] for name in method.further_heads]

    def begin_teacher(self, settings: EmaSettings) -> None:
        """Copy the network. From now on the copy, the teacher, follows every training step."""
        self.teacher = Teacher(self.network, settings)
        if self.settings.compile:
            self.teacher.network.compile()

    @property
    def predict_batch_size(self) -> int:
        """Images per batch of a predict pass."""
        return self.settings.predict_batch_size

    @property
    def pin_memory(self) -> bool:
        """Whether batches are in page-locked memory, from which copies to a CUDA device are asynchronous."""
        return self.settings.pin_memory

    @property
    def or_smaller_images(self) -> str:
        """` or transforms.size`, for the end of an advice; empty if the network takes features, which have no size."""
        return "" if self.network.on_features else " or transforms.size"

    def workers(self, in_memory: bool) -> int:
        """Number of loader processes."""
        return loader_workers(self.settings, in_memory)

    def autocast(self, precision: str, cache: bool = True):
        """The autocast context of a precision. `cache`: keep the copies of the weights until the context ends."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[precision], cache_enabled=cache)

    @contextmanager
    def enough_memory(self, what: str, cure: str) -> Iterator[None]:
        """Context for work on the device. Raises UserError with the `cure` if memory runs out."""
        try:
            yield
        except RuntimeError as error:
            if (said := shortage(error)) is None:
                raise
            raise UserError(f"{what}: {said} ({self.device}); {cure}") from None

    def optimization(self, method: Method, settings: OptimSettings, total_steps: int) -> Optimization:
        """An optimiser for a method's parameters."""
        fp16 = self.settings.precision == "fp16" and self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        optimization = Optimization(
            method.parameter_groups(), settings, total_steps, scaler, self.settings.fused, self.ranks
        )
        if self.ranks.world > 1 and type(method).step is Method.step:
            optimization.averaged_loss = self.ranks.averaged_loss(method.loss, optimization.moving)
        return optimization

    def fit(
        self,
        method: Method,
        batches: Iterable[Batch],
        optimization: Optimization,
        *,
        label: str,
        steps: int,
        progress: Callable[[float], float] = lambda done: done,
        freeze_batch_norm: bool = False,
        seed: Sequence[int] = (0,),
        begin: EpochState | None = None,
        pauses: Pauses | None = None,
        curves: Curves | None = None,
    ) -> dict[str, float]:
        """Train on `batches`, one step each.

        Args:
            method: computes the update from a batch.
            batches: the batches of the epoch that are not done yet, `steps` minus `begin.step`.
            optimization: the optimiser. Its schedule continues.
            label: text of the progress bar.
            steps: number of batches of the epoch.
            progress: maps the done share of the stage to that of the run, both 0 to 1.
            freeze_batch_norm: keep BatchNorm in eval mode, so that its running statistics do not change.
            seed: seeds the global generators (dropout) together with step and rank, so that the draws of a step do
                not depend on earlier steps.
            begin: the point where an earlier start paused.
            pauses: decides when to pause, and saves.
            curves: receives figures of training now and then: means of every scalar of this process, learning rates,
                seconds per step.

        Returns:
            The mean of every scalar that the method reports, over steps and processes.

        Raises:
            TrainingDivergedError: a loss or the network after the last step is not finite. Names step and images.
        """
        state = begin or EpochState()
        sums = state.sums
        pending: list[Mapping[str, Tensor]] = []
        # Reading a loss makes the host wait for a GPU. On a CPU it costs nothing.
        check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        point_every = CHECK_EVERY * max(1, math.ceil(optimization.total_steps / CHECK_EVERY / MOST_POINTS))
        window = Window(state.window)
        self._train_mode(freeze_batch_norm)
        delivered = self.delivered(batches)
        words = _words_ahead(seed, state.step, steps, self.ranks.rank)
        for step, batch in enumerate(show_progress(delivered, label, steps, self.log, state.step), state.step):
            _seed_by(next(words))
            batch = batch.to(self.device, memory_format=self.memory_format, non_blocking=self.pin_memory)
            optimization.begin_step()
            done = optimization.steps_done / max(optimization.total_steps, 1)
            method.progress = progress(done)
            # A method with several phases updates weights within its step, so cached copies would be out of date.
            with self.autocast(self.settings.precision, cache=False):
                scalars = self._step(method, batch, optimization)
            if self.teacher is not None:
                self.teacher.follow(self.network)
            for name, value in scalars.items():
                value = value * batch.weight if batch.weight != 1 else value
                sums[name] = sums[name] + value if name in sums else value
            pending.append(scalars if curves else {"loss": scalars["loss"]})
            last = step + 1 == steps
            pause = not last and pauses is not None and pauses.due(step + 1)
            point = curves is not None and (last or (step + 1) % point_every == 0)
            if len(pending) == check_every or last or pause or point:
                on_host = self._on_host(pending)
                self._check_finite([scalars["loss"] for scalars in on_host], step, steps, label, batches)
                pending.clear()
                if curves:
                    window.add(on_host)
            if last or pause:
                self._check_network(label, batch.images[:2])
            if point:
                curves(optimization.steps_done, {**window.take(), **optimization.learning_rates})
            if pause:
                window.rest()
                pauses.save(EpochState(step + 1, sums, dict(window.sums)))
                window.resume()
                self._train_mode(freeze_batch_norm)
        self._average_batch_norm()
        means = {name: float(value) / max(steps, 1) for name, value in sums.items()}
        over_ranks = self.ranks.sum(np.array(list(means.values()))) / self.ranks.world
        return dict(zip(means, over_ranks.tolist(), strict=True))

    def _step(self, method: Method, batch: Batch, optimization: Optimization) -> dict[str, Tensor]:
        if self.settings.accumulate > 1:
            return self._step_in_parts(method, batch, optimization)
        optimization.weight = batch.weight
        if optimization.averaged_loss is None:
            return method.step(batch, optimization, method.progress)
        loss, scalars = optimization.averaged_loss(batch)
        optimization.forget_gradients()
        optimization.backward(loss)
        optimization.update(averaged=True)
        return {"loss": loss.detach(), **scalars}

    def _step_in_parts(self, method: Method, batch: Batch, optimization: Optimization) -> dict[str, Tensor]:
        parts, averaged_loss = self.settings.accumulate, optimization.averaged_loss
        sums: dict[str, Tensor] = {}
        statistics = _running_statistics(self.network, self._own)
        before, totals = (
            [tensor.clone() for tensor in statistics],
            [torch.zeros_like(tensor) for tensor in statistics],
        )
        optimization.forget_gradients()
        for number, part in enumerate(batch.dealt(parts), 1):
            part = part.to(self.device, memory_format=self.memory_format)  # dividing a batch loses the memory format
            optimization.weight = part.weight
            if averaged_loss is None:
                loss, scalars = method.loss(part)
            else:
                with averaged_loss.no_sync() if number < parts else nullcontext():
                    loss, scalars = averaged_loss(part)
            optimization.backward(loss)
            for name, value in {"loss": loss.detach(), **scalars}.items():
                sums[name] = sums.get(name, 0) + part.weight * value / parts
            # BatchNorm updates its statistics once per step, by the mean of the parts, as with as many processes.
            for tensor, total, old in zip(statistics, totals, before, strict=True):
                total += tensor
                tensor.copy_(old)
        for tensor, total in zip(statistics, totals, strict=True):
            tensor.copy_(total / parts)
        optimization.update(parts=parts, averaged=averaged_loss is not None)
        return sums

    def _train_mode(self, freeze_batch_norm: bool) -> None:
        self.network.train()
        self._own.train()
        if freeze_batch_norm:
            for part in (self.network, *self._further_heads):
                for layer in batch_norms(part):
                    layer.eval()

    def running_statistics(self) -> list[Tensor]:
        """BatchNorm's running means and variances. They differ between processes until an epoch ends."""
        return _running_statistics(self.network, self._own, *([self.teacher.network] if self.teacher else []))

    def _average_batch_norm(self, weight: float = 1.0) -> None:
        self.ranks.average(self.running_statistics(), weight)

    @torch.no_grad()
    def _check_network(self, label: str, images: Tensor) -> None:
        """Check the network after the last update, which no loss shows, by a forward pass."""
        self.network.eval()
        if not torch.isfinite(self.network(images).logits).all():
            raise TrainingDivergedError(f"{label}: the network is not finite after the last update; {CURE}")

    def _on_host(self, steps: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
        """The scalars of steps as numbers. The host waits once for all of them."""
        if self.device.type == "cpu":
            return [
                {name: float(torch.as_tensor(value).detach()) for name, value in scalars.items()} for scalars in steps
            ]
        values = [
            torch.as_tensor(value, dtype=torch.float32, device=self.device).detach().reshape(())
            for scalars in steps
            for value in scalars.values()
        ]
        numbers = iter(torch.stack(values).tolist())
        return [{name: next(numbers) for name in scalars} for scalars in steps]

    def _check_finite(self, losses: list[float], step: int, steps: int, label: str, batches: Iterable[Batch]) -> None:
        finite = [math.isfinite(loss) for loss in losses]
        if all(finite):
            return
        bad = step - len(losses) + 1 + finite.index(False)
        ids = batches.ids(bad) if hasattr(batches, "ids") else []
        named = f" (batch: {', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''})" if ids else ""
        raise TrainingDivergedError(
            f"{label}: the loss is {losses[finite.index(False)]} at step {bad + 1} of {steps}{named}; {CURE}"
        )

    def predict_images(
        self,
        images: Images,
        transform: Transform,
        *,
        rows: slice | None = None,
        workers: int | None = None,
        label: str = "predict",
    ) -> Prediction:
        """Features and logits of images, in their order.

        Args:
            images: the images.
            transform: makes the network's inputs.
            rows: the images to predict; None: all.
            workers: loader processes; None: as in the settings.
            label: text of the progress bar.
        """
        rows = slice(0, len(images)) if rows is None else rows
        batches = predict_batches(
            images,
            transform,
            batch_size=self.predict_batch_size,
            workers=self.workers(images.in_memory) if workers is None else workers,
            rows=rows,
        )
        return self.predict(batches, rows.stop - rows.start, label=label)

    def predict(self, batches: Iterable[Tensor], count: int, *, label: str = "predict") -> Prediction:
        """Features and logits of every image, once each, in eval mode.

        Args:
            batches: image batches (B, C, S, S) in order. With several processes: those of this process's images.
            count: N, the number of images in the batches.
            label: text of the progress bar.

        Raises:
            UserError: memory runs out.
        """
        cure = f"lower runtime.predict_batch_size ({self.predict_batch_size} now){self.or_smaller_images}"
        if count <= 2:
            cure = f"use a smaller {'model.head' if self.network.on_features else 'model.backbone or transforms.size'}"
        weight = self._weight()
        features = room_for(count, weight.shape[1], self.scratch)
        logits = np.empty((count, weight.shape[0]), np.float32)
        done = 0
        total = math.ceil(count / self.predict_batch_size)
        pairs = ((images, None) for images in show_progress(self.delivered(batches), label, total, self.log))
        with self._predicting(label, cure):
            for part, _ in self._outputs(pairs, weight):
                rows = slice(done, done + len(part.logits))
                features[rows], logits[rows] = part.features, part.logits
                done += len(part.logits)
        if done != count:
            raise RuntimeError(f"{label}: the loader gave {done} images, not {count}")
        return Prediction(features, logits, weight)

    def predict_each(self, batches: Iterable[tuple[Tensor, T]], cure: str) -> Iterator[tuple[Prediction, T]]:
        """The prediction of each batch as it comes, so that memory does not grow with the number of images.

        Args:
            batches: pairs of images (B, C, S, S) and anything that belongs to them.
            cure: advice for the case that memory runs out.

        Raises:
            UserError: memory runs out.
        """
        outputs = self._outputs(self.delivered(batches), self._weight())
        while True:
            # The contexts belong to the thread. They must not hold while the caller has the prediction.
            with self._predicting("predict", cure):
                found = next(outputs, None)
            if found is None:
                return
            yield found

    @contextmanager
    def _predicting(self, label: str, cure: str) -> Iterator[None]:
        """Context of forward passes for a prediction. `cure`: as in `enough_memory`."""
        with (
            self.enough_memory(label, cure),
            torch.inference_mode(),
            self.autocast(self.settings.predict_precision),
        ):
            yield

    def _outputs(self, batches: Iterable[tuple[Tensor, T]], weight: np.ndarray) -> Iterator[tuple[Prediction, T]]:
        """The prediction of each batch, with what belongs to it. The caller sets the contexts."""
        under_way: list[tuple[Callable[[], list[np.ndarray]], T]] = []
        for images, kept in batches:
            output = self.predicts_with(self._move(images))
            under_way.append((self._fetch(output.features, output.logits), kept))
            if len(under_way) > 1:  # wait for the batch before while the device computes this one
                fetched, before = under_way.pop(0)
                yield Prediction(*fetched(), weight), before
        for fetched, kept in under_way:
            yield Prediction(*fetched(), weight), kept

    def _weight(self) -> np.ndarray:
        """The weight of the predicting network's classifier. The network is in eval mode then."""
        self.predicts_with.eval()
        return self.predicts_with.weight.detach().float().cpu().numpy().copy()

    def _fetch(self, *tensors: Tensor) -> Callable[[], list[np.ndarray]]:
        """Start to copy tensors to the host. The returned function waits for them and returns them as arrays."""
        cuda = self.device.type == "cuda"
        on_host = [tensor.float().to("cpu", non_blocking=cuda) for tensor in tensors]
        arrived = torch.cuda.Event() if cuda else None
        if cuda:
            arrived.record(torch.cuda.current_stream(self.device))

        def fetched() -> list[np.ndarray]:
            if cuda:
                arrived.synchronize()
            return [tensor.numpy() for tensor in on_host]

        return fetched

    def adapt_batch_norm(self, batches: Collection[Tensor]) -> None:
        """Replace BatchNorm's running statistics by the averages over `batches` (AdaBN, Li et al. 2016).

        The teacher gets its own averages.

        Args:
            batches: image batches (B, C, S, S) in random order: each should look like the whole domain. With several
                processes: this process's share of the batches, which may be empty. The processes' averages
                are averaged.
        """
        networks = [self.network, *([self.teacher.network] if self.teacher else [])]
        if not batch_norms(self.network):
            return
        for network in networks:
            self._adapt(network, batches)
        self._average_batch_norm(weight=len(batches))

    def _adapt(self, network: Network, batches: Collection[Tensor]) -> None:
        layers = batch_norms(network)
        momenta = [layer.momentum for layer in layers]
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        try:
            with torch.no_grad(), self.autocast(self.settings.predict_precision):
                delivered = show_progress(self.delivered(batches), "BatchNorm statistics", len(batches), self.log)
                for seen, images in enumerate(delivered, 1):
                    for layer in layers:
                        # The cumulative average. With momentum None each layer would read its counter from the GPU.
                        layer.momentum = 1 / seen
                    network.forward(self._move(images))  # a call would compile again for every momentum
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
                layer.eval()

    def delivered(self, batches: Iterable) -> Iterable:
        """Move the batches of a loader to the device. Other batches are returned unchanged."""
        return batches.on(self.device, self.pin_memory) if isinstance(batches, Batches) else batches

    def _move(self, images: Tensor) -> Tensor:
        return images.to(self.device, memory_format=self.memory_format, non_blocking=self.pin_memory)


def _running_statistics(*modules: nn.Module) -> list[Tensor]:
    layers = [layer for module in modules for layer in batch_norms(module)]
    return [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
