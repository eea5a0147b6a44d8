"""The optimiser of a stage: parameter groups, schedule, loss scaling and clipping."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uda.core.distributed import Ranks
from uda.training.settings import OptimSettings


class Optimization:
    """An optimiser over named parameter groups, its schedule, loss scaling and clipping.

    Args:
        groups: parameters by role, as a method names them.
        settings: settings of the optimiser.
        total_steps: steps of the stage, for the schedule.
        scaler: loss scaler for fp16; None for other precisions.
        fused: update all parameters in one kernel.
        ranks: the processes whose gradients are averaged.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[nn.Parameter]],
        settings: OptimSettings,
        total_steps: int,
        scaler: torch.amp.GradScaler | None = None,
        fused: bool = False,
        ranks: Ranks | None = None,
    ):
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.weight = 1.0
        self.averaged_loss: DistributedDataParallel | None = None
        """A method's loss whose backward pass averages the gradients; None: `update` averages them."""
        self.total_steps = total_steps
        self.scaler = scaler
        self.steps_done = 0
        sgd = settings.name == "sgd"
        self.parameters = {role: [p for p in parameters if p.requires_grad] for role, parameters in groups.items()}
        self.moving = [parameter for group in self.parameters.values() for parameter in group]
        """All parameters that are updated."""
        param_groups = []
        for role, parameters in self.parameters.items():
            scale, momentum = 1.0, settings.momentum
            if role == "backbone":
                scale = settings.backbone_lr_scale
                momentum = momentum if settings.backbone_momentum is None else settings.backbone_momentum
            own = {"betas": (momentum, 0.999)}
            if sgd:
                own = {"momentum": momentum, "nesterov": settings.nesterov and momentum > 0}
            base_lr = settings.lr * scale
            if parameters:
                param_groups.append({"params": parameters, "lr": settings.lr, "base_lr": base_lr, "role": role, **own})
        kind = torch.optim.SGD if sgd else torch.optim.AdamW
        # torch itself takes the grouped updates on a GPU only. On a CPU they are faster too, with the same bits.
        how = {"fused": True} if fused else {"foreach": True}
        self.optimizer = kind(param_groups, lr=settings.lr, weight_decay=settings.weight_decay, **how)
        self._fill_momenta()

    def _fill_momenta(self) -> None:
        """Set the momentum of every parameter of a fused SGD to 0, if it has none yet.

        torch's kernel needs a momentum for all parameters with a gradient, or for none. Otherwise a parameter that gets
        its first gradient in a later step raises an error. And if the scaler skips the first step, the momenta hold
        uninitialised memory.
        """
        for group in self.optimizer.param_groups:
            if self.settings.name == "sgd" and group["fused"] and group["momentum"]:
                for parameter in group["params"]:
                    state = self.optimizer.state[parameter]
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)

    def schedule(self, step: int) -> float:
        """Factor of the learning rate at a step. It depends only on step and total, so there is no state to save."""
        done = step / max(self.total_steps, 1)
        if self.settings.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.settings.schedule == "inverse":
            return (1 + self.settings.gamma * done) ** -self.settings.power
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

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of every parameter group, by a name for curves."""
        return {f"learning_rate/{group['role']}": group["lr"] for group in self.optimizer.param_groups}

    def descend(self, loss: Tensor, only: str | None = None) -> None:
        """Take one gradient step on `loss`, with all parameters or those of the group `only`.

        With several processes the gradient is that of the mean of their losses, each weighted by its images.
        """
        if only is not None and only not in self.parameters:
            raise KeyError(f"no parameter group '{only}' (known: {', '.join(self.parameters)})")
        self.forget_gradients()
        self.backward(loss)
        self.update(only)

    def forget_gradients(self) -> None:
        """Remove every gradient. torch's `zero_grad` tells a profiler of it too, which costs more than the rest."""
        for parameter in self.moving:
            parameter.grad = None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, weighted by the weight of its part of the batch."""
        if self.weight != 1:
            loss = loss * self.weight
        # Gradients have the types of the forward pass. DistributedDataParallel averages gradients in this pass.
        # Entering autocast's context costs time, so it is entered only if autocast is on.
        kind = loss.device.type
        plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with self.ranks.together(), plain:
            (self.scaler.scale(loss) if self.scaler else loss).backward()

    def update(self, only: str | None = None, parts: int = 1, averaged: bool = False) -> None:
        """Update the parameters by their gradients.

        Args:
            only: the group to update; None: all.
            parts: number of parts of a batch whose gradients were added up.
            averaged: whether the gradients are already means over the processes.
        """
        for role, parameters in self.parameters.items():
            if only is not None and role != only:
                for parameter in parameters:
                    parameter.grad = None
        moving = self.parameters[only] if only else self.moving
        if not averaged:
            self.ranks.average_gradients(moving)
        if parts > 1:
            torch._foreach_div_([p.grad for p in moving if p.grad is not None], parts)
        if self.settings.clip_grad is not None:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(moving, self.settings.clip_grad)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def state_dict(self) -> dict[str, object]:
        """State for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Resume from a saved state, of this machine or of another one."""
        saved = state["optimizer"]
        groups = zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        # Use the kernels of this machine: torch decides by `fused` on which device it loads AdamW's step count.
        groups = [{**theirs, "fused": own["fused"], "foreach": own["foreach"]} for theirs, own in groups]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        self._fill_momenta()
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.steps_done = state["steps_done"]
