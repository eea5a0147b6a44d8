"""The only training loop, and the only predict pass: devices, precision, schedules, logging."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from uda.config import OptimSettings, RuntimeSettings
from uda.data.loaders import Batch
from uda.device import apply_settings, loader_workers, settle
from uda.errors import UserError
from uda.methods import Method
from uda.models import Network, Prediction
from uda.models.backbones import batch_norms
from uda.progress import progress as show_progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Log = Callable[[str], None]


CURE = (
    "the last good checkpoint is kept. Lower the learning rate, set clip_grad or use runtime.precision=fp32, with "
    "another output=... (source.checkpoint=FOLDER/checkpoints/source.safetensors spares the source stage)"
)


class TrainingDivergedError(UserError):
    """The loss is no longer a number."""


def seed_everything(*keys: int) -> None:
    """Seed torch's global generators (dropout, initial weights) from a tuple of numbers."""
    torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class Optimization:
    """An optimiser over named parameter groups, its schedule, loss scaling and clipping.

    Args:
        groups: parameters by role, as a method names them.
        settings: the optimiser's settings.
        total_steps: steps of the stage, for the schedule.
        scaler: loss scaler for fp16, None otherwise.
        fused: the update in one kernel.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[nn.Parameter]],
        settings: OptimSettings,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
        fused: bool = False,
    ):
        self.settings = settings
        self.total_steps = total_steps
        self.scaler = scaler
        self.steps_done = 0
        scales = {"backbone": settings.backbone_lr_scale}
        self.parameters = {role: [p for p in parameters if p.requires_grad] for role, parameters in groups.items()}
        param_groups = [
            {"params": parameters, "lr": settings.lr, "base_lr": settings.lr * scales.get(role, 1.0), "role": role}
            for role, parameters in self.parameters.items()
            if parameters
        ]
        if settings.name == "sgd":
            self.optimizer = torch.optim.SGD(
                param_groups,
                lr=settings.lr,
                momentum=settings.momentum,
                nesterov=settings.nesterov and settings.momentum > 0,
                weight_decay=settings.weight_decay,
                fused=fused or None,
            )
        else:
            self.optimizer = torch.optim.AdamW(
                param_groups,
                lr=settings.lr,
                betas=(settings.momentum, 0.999),
                weight_decay=settings.weight_decay,
                fused=fused or None,
            )

    def schedule(self, step: int) -> float:
        """The learning rate's factor at a step, from step and total alone: nothing to save for a resume."""
        done = step / max(self.total_steps, 1)
        if self.settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.settings.schedule == "one_cycle":
            rise = 0.3
            if done < rise:
                return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / rise))
            return 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
        return 1.0

    def begin_step(self) -> None:
        """Set this step's learning rates."""
        factor = self.schedule(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.steps_done += 1

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """One update down the gradient of `loss`, of all parameters or of the group `only`."""
        if only is not None and only not in self.parameters:
            raise KeyError(f"no parameter group '{only}' (known: {', '.join(self.parameters)})")
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(loss.device.type, enabled=False):  # gradients run in the types of their forward
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        for role, parameters in self.parameters.items():
            if only is not None and role != only:
                for parameter in parameters:
                    parameter.grad = None
        if self.settings.clip_grad is not None:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            moving = self.parameters[only] if only else [p for group in self.parameters.values() for p in group]
            nn.utils.clip_grad_norm_(moving, self.settings.clip_grad)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def state_dict(self) -> dict[str, object]:
        """All that a resume needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.steps_done = state["steps_done"]


class Engine:
    """A network on one device, how to train it and how to predict with it.

    Args:
        network: moved to the device in place.
        settings: device, precision, memory format; the attribute of that name has all that they leave open decided.
        log: receives plain lines.
    """

    def __init__(self, network: Network, settings: RuntimeSettings, log: Log = print):
        self.settings = settle(settings, network)
        self.log = log
        apply_settings(self.settings)
        self.device = torch.device(self.settings.device)
        self.memory_format = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        self.network = network.to(self.device, memory_format=self.memory_format)
        if self.settings.compile:
            network.compile()  # in place: the names of its tensors stay

    @property
    def predict_batch_size(self) -> int:
        """Images in a batch of the predict pass."""
        return self.settings.predict_batch_size

    @property
    def pin_memory(self) -> bool:
        """Pinned host memory makes copies to a CUDA device asynchronous."""
        return self.settings.pin_memory

    def workers(self, in_memory: bool) -> int:
        """Loader processes."""
        return loader_workers(self.settings, in_memory)

    def autocast(self, precision: str):
        """The autocast context of a precision."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[precision])

    def optimization(self, method: Method, settings: OptimSettings, total_steps: int) -> Optimization:
        """An optimiser for a method's parameters."""
        fp16 = self.settings.precision == "fp16" and self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type) if fp16 else None
        return Optimization(method.parameter_groups(), settings, total_steps, scaler, self.settings.fused)

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
    ) -> dict[str, float]:
        """Train on `batches`, one step each.

        Args:
            method: computes the update from a batch.
            batches: `steps` batches.
            optimization: the optimiser; its schedule counts on from where it stands.
            label: what the progress bar says.
            steps: number of batches.
            progress: the stage's share done (0..1) to the run's.
            freeze_batch_norm: BatchNorm in eval mode, its running statistics untouched.

        Returns:
            The mean of every scalar that the method reports.

        Raises:
            TrainingDivergedError: a loss or the network after the last step is not finite; names step and images.
        """
        self.network.train()
        if freeze_batch_norm:
            for layer in batch_norms(self.network):
                layer.eval()
        sums: dict[str, Tensor] = {}
        pending: list[Tensor] = []
        # Reading a loss makes a GPU wait; on a CPU it is free.
        check_every = 1 if self.device.type == "cpu" else 20
        for step, batch in enumerate(show_progress(batches, label, steps, self.log)):
            batch = batch.to(self.device, memory_format=self.memory_format, non_blocking=self.pin_memory)
            optimization.begin_step()
            done = optimization.steps_done / max(optimization.total_steps, 1)
            with self.autocast(self.settings.precision):
                scalars = method.step(batch, optimization, progress(done))
            for name, value in scalars.items():
                sums[name] = sums[name] + value if name in sums else value
            pending.append(scalars["loss"])
            if len(pending) == check_every or step == steps - 1:
                self._check_finite(pending, step, steps, label, batches)
                pending.clear()
        self._check_network(label, batch.images[:2])
        return {name: float(value) / max(steps, 1) for name, value in sums.items()}

    @torch.no_grad()
    def _check_network(self, label: str, images: Tensor) -> None:
        """A loss is taken before its update, so the last update of an epoch is judged by a forward pass of its own."""
        self.network.eval()
        if not torch.isfinite(self.network(images).logits).all():
            raise TrainingDivergedError(f"{label}: the last update left a network without finite values; {CURE}")

    def _check_finite(self, losses: list[Tensor], step: int, steps: int, label: str, batches: Iterable[Batch]) -> None:
        finite = torch.isfinite(torch.stack(losses)).tolist()
        if all(finite):
            return
        bad = step - len(losses) + 1 + finite.index(False)
        ids = batches.ids(bad) if hasattr(batches, "ids") else []
        named = f" (batch: {', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''})" if ids else ""
        raise TrainingDivergedError(
            f"{label}: the loss is {float(losses[finite.index(False)])} at step {bad + 1} of {steps}{named}; {CURE}"
        )

    def predict(self, batches: Iterable[Tensor], count: int, *, label: str = "predict") -> Prediction:
        """Features and logits of every image, once each, in eval mode.

        Args:
            batches: image batches (B, C, S, S) in order.
            count: N, images in all.
            label: what the progress bar says.
        """
        self.network.eval()
        features = logits = None
        done = 0
        total = math.ceil(count / self.predict_batch_size)
        with torch.inference_mode(), self.autocast(self.settings.predict_precision):
            for images in show_progress(batches, label, total, self.log):
                output = self.network(self._move(images))
                if features is None:
                    features = np.empty((count, output.features.shape[1]), np.float32)
                    logits = np.empty((count, output.logits.shape[1]), np.float32)
                rows = slice(done, done + len(images))
                features[rows] = output.features.float().cpu().numpy()
                logits[rows] = output.logits.float().cpu().numpy()
                done += len(images)
        if done != count:
            raise RuntimeError(f"{label}: {done} images came out of the loader, not {count}")
        return Prediction(features, logits, self.network.weight.detach().float().cpu().numpy().copy())

    def adapt_batch_norm(self, batches: Collection[Tensor]) -> None:
        """Replace BatchNorm's running statistics by the averages over `batches` (AdaBN, Li et al. 2016).

        Args:
            batches: image batches (B, C, S, S) in random order: each should look like the whole domain.
        """
        layers = batch_norms(self.network)
        if not layers:
            return
        momenta = [layer.momentum for layer in layers]
        self.network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        try:
            with torch.no_grad(), self.autocast(self.settings.predict_precision):
                for images in show_progress(batches, "BatchNorm statistics", len(batches), self.log):
                    self.network(self._move(images))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
                layer.eval()

    def _move(self, images: Tensor) -> Tensor:
        return images.to(self.device, memory_format=self.memory_format, non_blocking=self.pin_memory)
