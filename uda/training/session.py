"""The session of a run: its folder, engine and checkpoints, training of a stage, and saving."""

import signal
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
from uda.evaluation.prediction_table import PREDICTIONS, write_predictions
from uda.models.backbones import describe_weights
from uda.models.class_vectors import start_from_class_vectors
from uda.models.network import Network, Prediction
from uda.models.weights import load_network, save_network
from uda.training import checkpoint
from uda.training.checkpoint import Checkpoints, Progress
from uda.training.config import RunConfig, differing_keys
from uda.training.device import describe
from uda.training.engine import Engine, EpochState
from uda.training.inputs import Inputs
from uda.training.method import Method
from uda.training.pace import rough_duration
from uda.training.records import Records, read_results
from uda.training.run_folder import RunFolder, RunLog
from uda.training.settings import OptimSettings
from uda.training.stages import STAGES

#: Seconds between the points at which several processes ask each other whether to pause.
SECONDS_BETWEEN_LOOKS = 0.5


def epoch_steps(natural: int, epochs: int, steps: int | None) -> list[int]:
    """Steps of each epoch of a stage: `epochs` whole epochs, or `steps` in total, with a shorter last epoch.

    `natural`: steps of a whole epoch.
    """
    if steps is None:
        return [natural] * epochs
    whole, rest = divmod(steps, natural)
    return [natural] * whole + ([rest] if rest else [])


@dataclass(frozen=True)
class Predicted:
    """The result of a predict pass of all processes."""

    mine: Prediction
    """The rows of this process."""
    whole: Prediction
    """All rows on rank 0, none on the others."""


class Report(Protocol):
    """The report of a run, as a session uses it."""

    @property
    def logs(self) -> bool:
        """Whether figures of the training are wanted."""

    def start(self, first_step: int) -> None:
        """Begin to log, with the training step `first_step` to come, counted from 1."""

    def flush(self) -> None:
        """Write the logged figures to disk."""

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of the training up to a step of the run."""

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds from the last report to the end of the run; None if unknown."""

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write the files of a finished run. Returns its results."""


class Session(ABC):
    """Base of all kinds of run. It resumes a run from its checkpoint. A subclass defines the stages.

    Args:
        config: the validated config.
        log: receives lines of text.
        ranks: the processes of the job. Only rank 0 reads checkpoints and writes.
        interruption: asked at every step whether to save and stop.

    Raises:
        UserError: anything that the user can correct, before anything is written.
    """

    engine: Engine
    checkpoints: Checkpoints
    records: Records
    command: Sequence[str] | None = None
    """The command line that started the run, for environment.json; None for a call from Python."""
    method: Method
    """The method that is trained. Its own networks are saved and restored."""
    untouched: Mapping[str, Tensor] | None = None
    """State of the network with the vectors of `model.classifier`, if `config.start` has replaced it; else None."""

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
        self._started = self._part_started = time.monotonic()
        if not self.finished:
            self.prepare()

    # Defined by a subclass

    @abstractmethod
    def prepare(self) -> None:
        """Load the data and build the network. Errors that a user can correct are raised before anything is written."""

    @property
    @abstractmethod
    def description(self) -> dict[str, object]:
        """Description of the network in a weights file. A network that loads the file must have the same."""

    @property
    @abstractmethod
    def inputs(self) -> Inputs:
        """The run's images, labels and classes. A run resumes only with the same ones."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether the images to train on are in memory."""

    @abstractmethod
    def plan(self) -> str:
        """Lines that describe what the run will do."""

    @abstractmethod
    def new_report(self) -> Report:
        """The report, which resumes from `records`. Only rank 0 has one."""

    @abstractmethod
    def train_stages(self) -> None:
        """Train from the current progress to the end."""

    @abstractmethod
    def summary(self, results: Mapping[str, Any]) -> list[str]:
        """Lines with the result of a finished run."""

    def final_prediction(self) -> tuple[Images, Prediction] | None:
        """The images that a finished run leaves a table of predictions for, and the final model's prediction of them.

        All processes call it. Only rank 0 gets the rows. None: this kind of run leaves no such table.
        """
        return None

    def state(self) -> dict[str, object]:
        """State that a checkpoint holds besides the networks: tensors, numbers and strings."""
        return {}

    @property
    def workers(self) -> int:
        """Number of loader processes of training batches."""
        return self.engine.workers(self.in_memory)

    @property
    def compute_line(self) -> str:
        """How the run is computed on this machine. A resumed run may be on another machine."""
        world = self.ranks.world
        job = f"{world} processes, each " if world > 1 else ""
        return f"compute  {job}{describe(self.engine.settings, self.workers)}"

    @property
    def reached(self) -> str:
        """The point that the run has reached, as text for people."""
        return self.progress.describe()

    @property
    def going_on(self) -> str:
        """Where the run goes on that an earlier start, or another run, has left."""
        return f"resuming {self.folder.path} from {self.reached}"

    # Execution

    def execute(self) -> dict | None:
        """Run to the end. Returns the results on rank 0. Returns None on other ranks and if the run was finished."""
        if not self.finished:
            return self.complete()
        self.log(f"{self.folder.path} is finished")
        if self.ranks.is_main:
            self.say(read_results(self.folder.results)[0])
        return None

    def complete(self) -> dict | None:
        """Run from the current progress to the end. Returns the results on rank 0."""
        if self.ranks.is_main:
            self.open_folder()
            self.report = self.new_report()
            within = self.saved[1]["optimization"]["steps_done"] if self.saved and self.progress.begun else 0
            self.report.start(self.steps_before + within + 1)
        if self.saved:
            self.load(self.saved[1])
            self.log(f"{self.going_on}{self._left()}")
            self.log(self.compute_line)
        else:
            self.log(self.plan())
        try:
            self.train_stages()
        except (UserError, KeyboardInterrupt):
            if self.ranks.is_main:
                self.report.stopped()
            raise
        final = self.final_prediction()
        if not self.ranks.is_main:
            return None
        self.save_weights("final")
        if final is not None:
            images, prediction = final
            write_predictions(self.folder.path / PREDICTIONS, images.ids, prediction, self.inputs.classes)
        results = self.report.finish(self.progress.seconds)
        self.say(results)
        return results

    def say(self, results: Mapping[str, Any]) -> None:
        """Log the result of the run and the path of its page."""
        for line in self.summary(results):
            self.log(line)
        page = self.folder.path / "report.html"
        if page.is_file():
            self.log(f"report: {page}")

    def _has_results(self) -> bool:
        """Whether the run has written valid results. An error in them is kept in `_flaw`."""
        if self.folder.resized or not self.folder.results.is_file():
            return False
        try:
            read_results(self.folder.results)
        except UserError as error:
            self._flaw = str(error)
            return False
        return True

    def build(self, network: Network, method: Callable[[Network], Method]) -> None:
        """Create engine and method, and read the newest checkpoint or the weights to start from.

        Raises:
            UserError: the run was begun with other images, labels or classes, its checkpoints are damaged, or the
                weights to start from do not fit.
        """
        if vectors := self.config.vectors_file:  # a checkpoint replaces them
            start_from_class_vectors(network, vectors, self.inputs.classes)
        self.ranks.check_same("the data", self.inputs.describe(), lambda first, other: f"{first} / {other}")
        self.engine = Engine(network, self.config.runtime, self.log if self.ranks.is_main else None, self.ranks)
        self.engine.scratch = self.folder.path
        self.method = method(network)
        self.engine.attach(self.method)
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.log, 60 * self.config.runtime.checkpoint_minutes)
        content = self.ranks.broadcast(self.checkpoints.read() if self.ranks.is_main else None)
        self.saved = None if content is None else checkpoint.parse(content, str(self.folder.checkpoints))
        self._check_saved()
        self.records = Records(self.folder.path, self.saved[1]["records"] if self.saved else None)
        if self.saved is None:
            if self.config.start and vectors:
                self.untouched = {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
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
                why = self._flaw or f"{self.folder.results} has another number of rounds ({self.folder.resized})"
                raise UserError(
                    f"{why}, and there is no checkpoint to resume from; choose another output=..., or delete "
                    f"{self.folder.path} to run again"
                )
            return
        if change := self.inputs.change_since(self.saved[1]["inputs"]):
            raise UserError(
                f"{self.folder.path} was begun with other {change}; restore the old ones, or choose another "
                "output=... to begin a run with the new ones"
            )
        if self._flaw:
            self.log(f"warning: {self._flaw}; the results are written again from the checkpoint")

    def open_folder(self) -> None:
        """Create the run folder, or open it to resume the run."""
        compute = self.engine.settings.model_dump() | {"processes": self.ranks.world}
        model, description = self.config.model, self.description
        weights = describe_weights(model.backbone, model.weights)
        if "features" in description:
            weights = {"from": description["backbone"]}
        self.folder.create(self.command, compute, weights)
        self.log.open(self.folder.path / "log.txt")
        if self.folder.resized:
            self.log(self.folder.resized)
        self.records.restore(self.log)

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return self.progress.seconds + time.monotonic() - self._started

    @property
    def steps_before(self) -> int:
        """Training steps of the run before its current stage. Only rank 0 knows them."""
        return 0

    def settle_rounds(self, stage: str, rounds: int) -> None:
        """Set the progress for the number of rounds in the config, which may be larger than in the run's last start.

        Args:
            stage: name of the stage of rounds.
            rounds: their number in the config.

        Raises:
            UserError: the config asks for fewer rounds than have begun.
        """
        if self.progress.stage not in (stage, "done"):
            return
        done, begun = self.progress.round, self.progress.round + self.progress.begun
        if rounds < begun:
            raise UserError(
                f"self_training.rounds: {rounds}, but {begun} rounds are done or begun in {self.folder.path}; "
                f"set {begun} or more, or choose another output=... (a run of {rounds} rounds would be the same "
                f"as the first {rounds} in {self.folder.path}/rounds)"
            )
        self.progress = replace(self.progress, stage=stage if rounds > done else "done")

    def begin_part(self) -> None:
        """Start the clock of a part of the run, such as a round. After a resume within the part, the clock goes on."""
        self._part_started = time.monotonic() - self._spent_on_part

    @property
    def part_seconds(self) -> float:
        """Time spent on the current part of the run, over all its starts."""
        return time.monotonic() - self._part_started

    @property
    def _spent_on_part(self) -> float:
        """Time that earlier starts spent on the part that the checkpoint is within."""
        return self.saved[1].get("part_seconds", 0.0) if self.saved and self.progress.begun else 0.0

    def _left(self) -> str:
        """For the log of a resumed run: how long it will take."""
        left = self.report.seconds_left if self.ranks.is_main else None
        return "" if not left else f", about {rough_duration(max(0.0, left - self._spent_on_part))} left"

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
        """Train one stage from its current step to its end, with checkpoints on the way and one at the end.

        Args:
            method: the method that is trained.
            batches: returns the batches of an epoch, by its number.
            optim: settings of the stage's optimiser.
            label: text of the progress bar.
            steps: number of steps of each epoch.
            progress: maps the done share of the stage to that of the run.
            freeze_batch_norm: keep BatchNorm in eval mode.
            extra: returns further state for checkpoints within the stage.
            after: called after every epoch with its number and scalars. A checkpoint follows.

        Returns:
            The mean of every scalar over the last epoch.
        """
        optimization = self.engine.optimization(method, optim, sum(steps))
        scalars: dict[str, float] = {}
        begin = EpochState()
        if self.progress.begun:
            saved = self.saved[1]
            optimization.load_state_dict(saved["optimization"])
            sums = {name: self._own(values) for name, values in saved["sums"].items()}
            window = {name: tuple(entry) for name, entry in saved.get("window", {}).items()}
            scalars, begin = saved["scalars"], EpochState(self.progress.step, sums, window)
        self.saved = None
        curves, before = None, self.steps_before
        if self.ranks.is_main and self.report.logs:

            def curves(step: int, values: dict[str, float]) -> None:
                self.report.training(before + step, values)

        stage = STAGES[self.progress.stage].number
        smaller = self.smaller_step(method, self.progress.stage)

        def save(epoch: int, state: EpochState) -> None:
            progress = replace(self.progress, epoch=epoch, step=state.step, seconds=self.seconds)
            kept = {
                "optimization": optimization.state_dict(),
                "scalars": scalars,
                "part_seconds": self.part_seconds,
                "window": state.window,
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
                    curves=curves,
                )
                if after is not None:
                    if self.progress.step < steps[epoch]:  # `after` may take longer than the time after a signal
                        save(epoch, EpochState(steps[epoch], begin.sums))
                    after(epoch, scalars)
                begin = EpochState()
                due = pauses.due()  # also in the last epoch, because all processes must stop together
                if due or after is not None or epoch + 1 == len(steps):
                    save(epoch + 1, begin)
                    pauses.leave()
        return scalars

    def begin_teacher(self) -> None:
        """Let the teacher begin as a copy of the network, if the config asks for one and none is there."""
        if self.config.ema.decay is not None and self.engine.teacher is None:
            self.engine.begin_teacher(self.config.ema)
            self.predict_with(self.config.ema.evaluated)

    def predict_with(self, which: str) -> None:
        """Predict with the `teacher`, if there is one, or with the `student`, the trained network."""
        teacher = self.engine.teacher
        self.engine.predicts_with = teacher.network if teacher and which == "teacher" else self.engine.network

    def predict_images(self, images: Images, transform: Transform) -> Predicted:
        """Predict every image once, in order. Each process predicts a share of the images."""
        rows = self.ranks.rows(len(images))
        mine = self.engine.predict_images(images, transform, rows=rows)
        features, logits = (
            self.ranks.gather_rows_to_main(array, len(images)) for array in (mine.features, mine.logits)
        )
        return Predicted(mine, Prediction(features, logits, mine.weight))

    def smaller_step(self, method: Method, stage: str) -> str:
        """Advice for the case that memory does not suffice for a training step of a stage."""
        lower = f"lower {STAGES[stage].batches}{self.engine.or_smaller_images}"
        if type(method).step is not Method.step:
            return lower
        parts = 2 * self.config.runtime.accumulate
        return f"run the same command with runtime.accumulate={parts} (a batch in {parts} parts), or {lower}"

    def save(self, progress: Progress, state: Mapping[str, object] | None = None) -> None:
        """Write a checkpoint. All processes call it, rank 0 writes."""
        self._started = time.monotonic()
        self.progress = progress
        teacher = self.engine.teacher
        state = {
            "network": self.engine.network.state_dict(),
            "method": self.method.modules.state_dict(),
            **({"teacher": teacher.state()} if teacher else {}),
            **self.state(),
            **(state or {}),
            "inputs": self.inputs.state,
            "records": self.records.state(),
        }
        if self.ranks.world > 1 and progress.step:
            state["statistics"] = self._of_every_rank(_flat(self.engine.running_statistics()))
        if self.ranks.is_main:
            with self.interruption.deferred():
                self.report.flush()  # figures up to the checkpoint must not be lost; those after it are drawn again
                self.checkpoints.save(progress, state)

    def save_weights(self, name: str) -> None:
        """Write the network that predicts to `checkpoints/<name>.safetensors`."""
        save_network(self.engine.predicts_with, self.folder.checkpoints / f"{name}.safetensors", self.description)

    def load(self, state: Mapping[str, object]) -> None:
        """Load network and method from a checkpoint's state.

        Within an epoch each process has its own BatchNorm statistics. If the number of processes has changed, all get
        their mean.
        """
        self.engine.network.load_state_dict(state["network"])
        self.method.modules.load_state_dict(state["method"])
        if "teacher" in state:
            self.begin_teacher()
            self.engine.teacher.load(state["teacher"])
        statistics = state.get("statistics")
        if statistics is None:
            return
        tensors = self.engine.running_statistics()
        mine = self._own(statistics).split([tensor.numel() for tensor in tensors])
        for tensor, values in zip(tensors, mine, strict=True):
            tensor.copy_(values.view_as(tensor))

    def _difference(self, first: str, other: str) -> str:
        """The keys in which two configs differ. `first`, `other`: the configs as YAML."""
        parsed = type(self.config).model_validate(yaml.safe_load(other))
        return "; ".join(differing_keys(parsed, yaml.safe_load(first), skip=()))

    def _of_every_rank(self, mine: Tensor) -> Tensor:
        """Gather the numbers (n,) of every process: (world, n) on rank 0."""
        return torch.from_numpy(self.ranks.gather_rows_to_main(mine.cpu().numpy()[None], self.ranks.world))

    def _own(self, of_every_rank: Tensor) -> Tensor:
        """The row of this process, or the mean of all rows if the number of processes has changed."""
        same = len(of_every_rank) == self.ranks.world
        return (of_every_rank[self.ranks.rank] if same else of_every_rank.mean(0)).squeeze(0)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)


class RunPauses:
    """Pauses an epoch when a checkpoint is due or the run was asked to end. All processes pause together."""

    def __init__(self, run: Session, first_step: int, save: Callable[[EpochState], None]):
        self.run = run
        self.save_state = save
        self._leaving = False
        self._look_at = first_step
        self._looked = (first_step, time.monotonic())

    def due(self, step: int | None = None) -> bool:
        """Whether to pause after `step` steps. None: at the end of the epoch."""
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
        """End the run if any process was asked to."""
        if self._leaving:
            raise Interrupted(self.run.interruption.requested or signal.SIGTERM)
