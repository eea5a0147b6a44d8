"""A run as it stands: its folder, engine and checkpoint, how a stage is trained from there, how all of it is saved."""

import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.interruption import Interrupted, Interruption
from uda.data.images import Images
from uda.data.transforms import Transform
from uda.models.backbones import describe_weights
from uda.models.network import Network, Prediction
from uda.models.weights import load_network, save_network
from uda.training import checkpoint
from uda.training.checkpoint import Checkpoints, Progress
from uda.training.config import RunConfig, differing_keys
from uda.training.device import describe
from uda.training.engine import Engine, EpochState
from uda.training.inputs import Inputs
from uda.training.method import Method
from uda.training.records import Records, read_results
from uda.training.run_folder import RunFolder, RunLog
from uda.training.settings import OptimSettings
from uda.training.stages import STAGES

#: In a job of several processes they ask each other this often, in seconds, whether to pause.
SECONDS_BETWEEN_LOOKS = 0.5


def epoch_steps(natural: int, epochs: int, steps: int | None) -> list[int]:
    """Steps of each epoch of a stage: `epochs` whole ones, or as many as `steps` in all need, the last one cut."""
    if steps is None:
        return [natural] * epochs
    whole, rest = divmod(steps, natural)
    return [natural] * whole + ([rest] if rest else [])


@dataclass(frozen=True)
class Predicted:
    """A predict pass of all processes of a job."""

    mine: Prediction
    """This process's rows of it."""
    whole: Prediction
    """All rows on rank 0, none on the others."""


class Report(Protocol):
    """What a session needs of a run's report."""

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write what a finished run leaves. Returns its results."""


class Session(ABC):
    """What every kind of run has: where it stands, and the way from there to its end through any interruption.

    A subclass says what its stages are.

    Args:
        config: the validated config.
        log: receives plain lines.
        ranks: the processes of the job; rank 0 alone reads checkpoints and writes.
        interruption: asked at every step whether to save and leave.

    Raises:
        UserError: anything that the user can mend, before anything is written.
    """

    engine: Engine
    checkpoints: Checkpoints
    records: Records
    method: Method
    """What is trained; its own networks are saved and restored."""

    def __init__(
        self,
        config: RunConfig,
        log: RunLog | None = None,
        ranks: Ranks | None = None,
        interruption: Interruption | None = None,
    ):
        self.config = config
        self.log = log or RunLog()
        self.ranks = ranks or Ranks()
        self.interruption = interruption or Interruption()
        self.ranks.check_same("the config", config.to_yaml(), self._difference)
        self.folder = RunFolder(config, check=self.ranks.is_main)
        self._flaw: str | None = None
        self.finished = bool(self.ranks.maximum([self.ranks.is_main and self._has_results()])[0])
        self.progress = Progress()
        self._started = time.monotonic()
        if not self.finished:
            self.prepare()

    # To be said by a subclass

    @abstractmethod
    def prepare(self) -> None:
        """Bring data and network to where the run stands; what a user can mend is found before anything is written."""

    @property
    @abstractmethod
    def description(self) -> dict[str, object]:
        """What a weights file says about itself, and must share with a network that loads it."""

    @property
    @abstractmethod
    def inputs(self) -> Inputs:
        """The run's images, labels and classes: a run goes on with its own alone."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether the images to train on are in memory."""

    @abstractmethod
    def plan(self) -> str:
        """What will be done, in lines."""

    @abstractmethod
    def new_report(self) -> Report:
        """The report, which goes on with `records`. Rank 0 has one."""

    @abstractmethod
    def train_stages(self) -> None:
        """Train from wherever the run stands to its end."""

    @abstractmethod
    def summary(self, results: Mapping[str, Any]) -> list[str]:
        """A finished run's result, in lines."""

    def state(self) -> dict[str, object]:
        """What a checkpoint holds besides the networks: tensors, numbers and strings."""
        return {}

    @property
    def workers(self) -> int:
        """Loader processes of training batches."""
        return self.engine.workers(self.in_memory)

    @property
    def compute_line(self) -> str:
        """How the run is computed on this machine; a resume may have found another one."""
        world = self.ranks.world
        job = f"{world} processes, each " if world > 1 else ""
        return f"compute  {job}{describe(self.engine.settings, self.workers)}"

    # The way through a run

    def execute(self) -> dict | None:
        """Run to the end. Returns the results; None when the run had been finished before, and but on rank 0."""
        if not self.finished:
            return self.complete()
        self.log(f"{self.folder.path} is finished")
        if self.ranks.is_main:
            self.say(read_results(self.folder.results)[0])
        return None

    def complete(self) -> dict | None:
        """Run from wherever it stands to its end. Returns the results on rank 0."""
        if self.ranks.is_main:
            self.open_folder()
            self.report = self.new_report()
        if self.saved:
            self.load(self.saved[1])
            self.log(f"resuming {self.folder.path} from {self.progress.describe()}")
            self.log(self.compute_line)
        else:
            self.log(self.plan())
        self.train_stages()
        if not self.ranks.is_main:
            return None
        self.save_weights("final")
        results = self.report.finish(self.progress.seconds)
        self.say(results)
        return results

    def say(self, results: Mapping[str, Any]) -> None:
        """Say what the run has come to, and where its page is."""
        for line in self.summary(results):
            self.log(line)
        page = self.folder.path / "report.html"
        if page.is_file():
            self.log(f"report: {page}")

    def _has_results(self) -> bool:
        """Whether the run has written its results; what is wrong with them is kept in `_flaw`."""
        if self.folder.resized or not self.folder.results.is_file():
            return False
        try:
            read_results(self.folder.results)
        except UserError as error:
            self._flaw = str(error)
            return False
        return True

    def build(self, network: Network, method: Callable[[Network], Method]) -> None:
        """Bring the network to the device, and network and method to where the run stands.

        Raises:
            UserError: the run was begun with other images, labels or classes, its checkpoints are damaged, or the
                weights that it is to begin with do not fit.
        """
        self.ranks.check_same("the data", self.inputs.describe(), lambda first, other: f"{first} / {other}")
        self.engine = Engine(network, self.config.runtime, self.log if self.ranks.is_main else None, self.ranks)
        self.method = method(network)
        self.engine.attach(self.method)
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.log, 60 * self.config.runtime.checkpoint_minutes)
        content = self.ranks.broadcast(self.checkpoints.read() if self.ranks.is_main else None)
        self.saved = None if content is None else checkpoint.parse(content, str(self.folder.checkpoints))
        self._check_saved()
        self.records = Records(self.folder.path, self.saved[1]["records"] if self.saved else None)
        if self.saved is None:
            if self.config.start and self.ranks.is_main:
                load_network(network, self.config.start, self.description)
            self.ranks.broadcast_network(network)
            self.ranks.broadcast_network(self.method.modules)
        else:
            self.progress = self.saved[0]
        self._started = time.monotonic()

    def _check_saved(self) -> None:
        if self.saved is None:
            if self.ranks.is_main and self.folder.results.is_file():
                why = self._flaw or f"{self.folder.results} is of another number of rounds ({self.folder.resized})"
                raise UserError(
                    f"{why}, and there is no checkpoint to go on from; choose another output=..., or delete "
                    f"{self.folder.path} to run again"
                )
            return
        if change := self.inputs.change_since(self.saved[1]["inputs"]):
            raise UserError(
                f"{self.folder.path} was begun with other {change}; bring the old ones back, or choose another "
                "output=... to begin a run with these"
            )
        if self._flaw:
            self.log(f"warning: {self._flaw}; the results are written anew from the checkpoint")

    def open_folder(self) -> None:
        """Make the run's folder, or go on in it."""
        compute = self.engine.settings.model_dump() | {"processes": self.ranks.world}
        model = self.config.model
        self.folder.create(sys.argv, compute, describe_weights(model.backbone, model.weights))
        self.log.open(self.folder.path / "log.txt")
        if self.folder.resized:
            self.log(self.folder.resized)
        self.records.restore(self.log)

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return self.progress.seconds + time.monotonic() - self._started

    def train(
        self,
        method: Method,
        batches: Callable,
        optim: OptimSettings,
        *,
        label: str,
        steps: Sequence[int],
        progress: Callable[[float], float],
        freeze_batch_norm: bool = False,
        extra: Callable[[], dict[str, object]] = dict,
        after: Callable[[int, dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Train one stage from the step where it stands, with checkpoints on the way and one at its end.

        Args:
            method: what is trained.
            batches: gives the batches of an epoch.
            optim: the stage's optimiser.
            label: what the progress bar says.
            steps: of each epoch.
            progress: the stage's share done to the run's.
            freeze_batch_norm: BatchNorm in eval mode.
            extra: what checkpoints within the stage hold besides.
            after: called after every epoch with its number and scalars; then a checkpoint follows.
        """
        optimization = self.engine.optimization(method, optim, sum(steps))
        scalars: dict[str, float] = {}
        begin = EpochState()
        if self.progress.begun:
            saved = self.saved[1]
            optimization.load_state_dict(saved["optimization"])
            sums = {name: self._own(values) for name, values in saved["sums"].items()}
            scalars, begin = saved["scalars"], EpochState(self.progress.step, sums)
        self.saved = None
        stage = STAGES[self.progress.stage].number
        smaller = self.smaller_step(method, self.progress.stage)

        def save(epoch: int, state: EpochState) -> None:
            progress = replace(self.progress, epoch=epoch, step=state.step, seconds=self.seconds)
            kept = {
                "optimization": optimization.state_dict(),
                "scalars": scalars,
                "sums": {name: self._of_every_rank(value.reshape(1)) for name, value in state.sums.items()},
            }
            self.save(progress, {**kept, **extra()})

        for epoch in range(self.progress.epoch, len(steps)):
            with self.interruption.deferred(), self.engine.enough_memory(label, smaller):
                pauses = RunPauses(self, begin.step, lambda state, epoch=epoch: save(epoch, state))
                scalars = self.engine.fit(
                    method,
                    batches(epoch).starting_at(begin.step),
                    optimization,
                    label=label if len(steps) == 1 else f"{label}, epoch {epoch + 1}/{len(steps)}",
                    steps=steps[epoch],
                    progress=progress,
                    freeze_batch_norm=freeze_batch_norm,
                    seed=(stage, self.config.seed, self.progress.round, epoch),
                    begin=begin,
                    pauses=pauses,
                )
                if after is not None:
                    if self.progress.step < steps[epoch]:  # what comes now may outlast a signal's grace
                        save(epoch, EpochState(steps[epoch], begin.sums))
                    after(epoch, scalars)
                begin = EpochState()
                due = pauses.due()  # asked in the last epoch too: all ranks leave together
                if due or after is not None or epoch + 1 == len(steps):
                    save(epoch + 1, begin)
                    pauses.leave()
        return scalars

    def predict_images(self, images: Images, transform: Transform) -> Predicted:
        """A predict pass: every image once, in order, each process a share of them."""
        rows = self.ranks.rows(len(images))
        mine = self.engine.predict_images(images, transform, rows=rows)
        features, logits = (
            self.ranks.gather_rows_to_main(array, len(images)) for array in (mine.features, mine.logits)
        )
        return Predicted(mine, Prediction(features, logits, mine.weight))

    def smaller_step(self, method: Method, stage: str) -> str:
        """What to do where memory does not suffice for a training step of a stage."""
        lower = f"lower {STAGES[stage].batches} or transforms.size"
        if type(method).step is not Method.step:
            return lower
        parts = 2 * self.config.runtime.accumulate
        return f"give the same command with runtime.accumulate={parts} (a batch in so many parts), or {lower}"

    def save(self, progress: Progress, state: Mapping[str, object] | None = None) -> None:
        """Write a checkpoint; every rank calls it, rank 0 writes."""
        self._started = time.monotonic()
        self.progress = progress
        state = {
            "network": self.engine.network.state_dict(),
            "method": self.method.modules.state_dict(),
            **self.state(),
            **(state or {}),
            "inputs": self.inputs.state,
            "records": self.records.state(),
        }
        if self.ranks.world > 1 and progress.step:
            state["statistics"] = self._of_every_rank(_flat(self.engine.running_statistics()))
        if self.ranks.is_main:
            with self.interruption.deferred():
                self.checkpoints.save(progress, state)

    def save_weights(self, name: str) -> None:
        """Write the network to `checkpoints/<name>.safetensors`."""
        save_network(self.engine.network, self.folder.checkpoints / f"{name}.safetensors", self.description)

    def load(self, state: Mapping[str, object]) -> None:
        """Network and method from a checkpoint's state.

        Within an epoch each rank has BatchNorm statistics of its own; for another number of ranks, their
        mean.
        """
        self.engine.network.load_state_dict(state["network"])
        self.method.modules.load_state_dict(state["method"])
        statistics = state.get("statistics")
        if statistics is None:
            return
        tensors = self.engine.running_statistics()
        mine = self._own(statistics).split([tensor.numel() for tensor in tensors])
        for tensor, values in zip(tensors, mine, strict=True):
            tensor.copy_(values.view_as(tensor))

    def _difference(self, first: str, other: str) -> str:
        """The keys in which two configs, as YAML, differ."""
        parsed = type(self.config).model_validate(yaml.safe_load(other))
        return "; ".join(differing_keys(parsed, yaml.safe_load(first), skip=()))

    def _of_every_rank(self, mine: Tensor) -> Tensor:
        """Each rank's (n) numbers, (world, n) on rank 0."""
        return torch.from_numpy(self.ranks.gather_rows_to_main(mine.cpu().numpy()[None], self.ranks.world))

    def _own(self, of_every_rank: Tensor) -> Tensor:
        """This rank's row; the mean where another number of ranks saved."""
        same = len(of_every_rank) == self.ranks.world
        return (of_every_rank[self.ranks.rank] if same else of_every_rank.mean(0)).squeeze(0)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)


class RunPauses:
    """Where an epoch pauses: when a checkpoint is due, or the run was asked to end. All ranks answer alike."""

    def __init__(self, run: Session, first_step: int, save: Callable[[EpochState], None]):
        self.run = run
        self.save_state = save
        self._leaving = False
        self._look_at = first_step
        self._looked = (first_step, time.monotonic())

    def due(self, step: int | None = None) -> bool:
        """Whether to pause after `step` steps; None: at the epoch's end, where one may always ask."""
        run = self.run
        asked, old = run.interruption.requested is not None, run.ranks.is_main and run.checkpoints.due
        if run.ranks.world == 1:
            self._leaving = asked
            return asked or old
        if step is not None and step < self._look_at:
            return False
        now = time.monotonic()
        seconds = (now - self._looked[1]) / max(1, (step or 0) - self._looked[0])
        self._leaving, due, seconds = run.ranks.maximum([asked, asked or old, seconds])
        if step is not None:
            self._look_at = step + max(1, int(SECONDS_BETWEEN_LOOKS / max(seconds, 1e-3)))
            self._looked = (step, now)
        return bool(due)

    def save(self, state: EpochState) -> None:
        """Save, and end the run if it was asked to."""
        self.save_state(state)
        self.leave()

    def leave(self) -> None:
        """End the run if any rank was asked to."""
        if self._leaving:
            raise Interrupted(self.run.interruption.requested or signal.SIGTERM)
