"""The dry run's stopwatch on a clock and a device that are made up, and what a whole run costs by it, by hand."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.adaptation.test_run_without_rounds import NEEDED, SMALL
from tests.in_process import adapt
from tests.pretend_device import pretended
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.adaptation.work import work_of
from uda.core.devices import synchronise
from uda.core.distributed import Ranks
from uda.data.loaders import Batches
from uda.models.network import Prediction
from uda.training import pace
from uda.training.pace import Pace, Stopwatch, Trials, as_if_of, peak_memory, training_pace


class Device:
    """A clock, and a device that takes work at once and does it while somebody waits for it, as a GPU seems to."""

    def __init__(self, monkeypatch):
        self.now, self.queued, self.waits = 0.0, 0.0, 0
        monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pace, "synchronise", self.synchronise)

    def synchronise(self, _):
        self.now, self.queued, self.waits = self.now + self.queued, 0.0, self.waits + 1

    def loaded(self, count, seconds):
        """Batches of 32 images, each of which takes so long to come."""
        for _ in range(count):
            self.now += seconds
            yield range(32)


@pytest.fixture
def gpu(monkeypatch):
    return Device(monkeypatch)


def stopwatch(skip=0, most_seconds=1000.0, ranks=None):
    return Stopwatch(torch.device("cpu"), skip, most_seconds, ranks or Ranks())


def test_work_is_timed_and_not_its_start(gpu):
    """The device is given 5 s of work and the loader takes 3 s, but 100 s for the first batch, which is not timed."""
    watch = stopwatch(skip=1)
    batches = (batch for part in (gpu.loaded(1, 100), gpu.loaded(4, 3)) for batch in part)
    for _ in watch.over(batches):
        gpu.queued = 5.0
    found = watch.pace()
    assert (found.images, found.waiting, found.working, found.seconds) == (32, 3, 5, 8)
    assert gpu.waits == 1 + 5
    assert (
        found.waits
        and not Pace(
            32,
            0.1,
            5,
        ).waits
    )


@pytest.mark.parametrize(("skip", "timed"), [(0, 2), (3, 1)])
def test_no_batch_is_asked_for_when_time_is_up_and_one_is_timed(gpu, skip, timed):
    """8 s each: the second one ends after the tenth second; where none had been timed, it is."""
    watch = stopwatch(skip, most_seconds=10)
    for _ in watch.over(gpu.loaded(6, 3)):
        gpu.queued = 5.0
    assert gpu.now == 16 and len(watch._rows) == timed and watch.pace().seconds == 8


def test_the_slowest_process_counts_and_all_stop_together(gpu):
    """Another process is three times as slow as this one: its 24 s end the loop of both."""
    ranks = Ranks()
    ranks.maximum = lambda values: [3 * value for value in values]
    watch = stopwatch(most_seconds=20, ranks=ranks)
    for _ in watch.over(gpu.loaded(6, 3)):
        gpu.queued = 5.0
    assert gpu.now == 8 and (watch.pace().waiting, watch.pace().working) == (9, 15)


def test_warm_up_and_what_loader_processes_have_made_ahead_are_not_timed(gpu, monkeypatch):
    """Step 0 takes 50 s (it compiles), so that one step warms up; steps 2 and 3 are the two loader processes'."""
    monkeypatch.setattr(pace, "MEASURED", 3)
    asked = []

    class Numbered:
        def __init__(self, numbers):
            self.numbers = numbers

        def window(self, first, steps):
            return Numbered(range(first, first + steps))

        def __len__(self):
            return len(self.numbers)

        def __iter__(self):
            for number in self.numbers:
                gpu.now += 0 if number < 4 else 0.25
                asked.append(number)
                yield range(32)

    def fit(method, batches, optimization, *, label, steps, freeze_batch_norm):
        assert freeze_batch_norm
        for _ in batches:
            gpu.queued = 50.0 if asked[-1] == 0 else 0.5

    engine = SimpleNamespace(device=torch.device("cpu"), ranks=Ranks(), fit=fit, delivered=iter)
    found = training_pace(engine, None, None, Numbered(range(0)), workers=2, freeze_batch_norm=True)
    assert asked == [0, 2, 3, 4, 5, 6]
    assert (found.waiting, found.working) == (0.25, 0.5)


def test_each_kind_of_device_is_waited_for_by_its_own_call(monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda which: called.append(str(which)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: called.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronise(torch.device(name))
    assert called == ["cuda:1", "mps"]


def test_batches_are_timed_on_their_way_to_the_device(tiny, monkeypatch):
    """What is timed is what a run does: batches of the loader, brought to the device by it."""
    run = AdaptationRun(AdaptationConfig.load(tiny))
    brought = []
    monkeypatch.setattr(run.engine, "delivered", lambda batches: brought.append(batches) or iter(batches))
    trials = run.trials()
    assert {name: steps for name, (steps, _) in trials.stages.items()} == {"source": 4, "rounds": 6}
    assert trials.predicted == 96
    assert sum(isinstance(batches, Batches) for batches in brought) == 2 + 2 * 2


def test_what_a_gpu_holds_at_most_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda which: 3 << 29)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: SimpleNamespace(total_memory=16 << 30))
    assert peak_memory(torch.device("cuda:1")) == "peak 1.5 GiB of the 16.0 GiB of cuda:1"
    assert peak_memory(torch.device("cpu")) is None


def test_a_few_images_stand_for_all():
    sample = Prediction(np.array([[1.0, 2], [3, 4]]), np.array([[5.0], [6]]), np.ones((1, 2)))
    found = as_if_of(sample, 3)
    assert found.features.tolist() == [[1, 2], [3, 4], [1, 2]] and found.logits.tolist() == [[5], [6], [5]]


def test_the_cost_of_a_run_by_hand(tiny, monkeypatch):
    """32 images in batches of 8 and 2 rounds of 3 steps; 3 predict passes over 32 images.

    4 * 10 s + 6 * (2 + 18) s + 96 * 4 s / 8 images = 40 + 120 + 48 = 208 s; without waiting 36 + 108 + 36 = 180 s.
    """
    trials = Trials({"source": (4, Pace(8, 1, 9)), "rounds": (6, Pace(8, 2, 18))}, 96, Pace(8, 1, 3))
    monkeypatch.setattr(AdaptationRun, "trials", lambda run: trials)
    run = AdaptationRun(AdaptationConfig.load(tiny))
    lines = run.cost().split("\n")
    assert lines[0].startswith("cost     10 training steps, 96 images predicted: about 3 min on cpu")
    assert lines[1:] == [
        "pace     source   10.000 s per step of 8 images, 10 % of it waiting for images",
        "pace     rounds   20.000 s per step of 8 images, 10 % of it waiting for images",
        "pace     predict  2 images per second, 25 % of it waiting for images",
    ], "images in memory are not loaded ahead, so that nothing is said of the loader"
    monkeypatch.setattr(pace, "rough_duration", lambda seconds: f"{seconds:.0f} s")
    assert "about 208 s" in run.cost() and "about 180 s" in run.cost(loads=False)
    assert "pace     predict  3 images per second\n" in run.cost(loads=False) + "\n"
    monkeypatch.setattr(run.engine, "workers", lambda in_memory: 2)
    assert "loading  is slower than the network in predict; more runtime.workers" in run.cost()
    run.ranks.world = 2
    assert "about 184 s" in run.cost(), "each process predicts half of the images"
    assert "of 8 images in each process" in run.cost()


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        # 32 images: 4 steps of 8, 2 rounds of 3 steps of 4 + 4; the source's prediction and one per round
        ("self_training", [], (4, 8, 6, 8, 2, 3 * 32)),
        # AdaBN in the rounds: the first choice takes a prediction of its own; 30 images give statistics, 3 times
        ("self_training", ["self_training={adapt_batch_norm: true, adapt_images: 30}"], (4, 8, 6, 8, 2, 4 * 32 + 90)),
        ("source_only", [], (4, 8, 0, 8, 0, 32)),
        # no source model to judge; each target image comes in two views
        ("fixmatch", SMALL, (0, 8, 7, 4 + 2 * 5, 3, 3 * 32)),
        ("mcc", [*SMALL, "adaptation.adapt_batch_norm=true"], (0, 8, 7, 9, 3, 6 * 32)),
        # source-free; labels are prepared from the source model's prediction
        ("shot", SMALL, (4, 8, 7, 5, 3, 4 * 32)),
        ("shot", [*SMALL, "adaptation.adapt_batch_norm=true"], (4, 8, 7, 5, 3, 5 * 32 + 4 * 32)),
        ("dann", [*SMALL, "data.target_labelled=few.txt", "data.labelled_per_batch=2"], (0, 10, 7, 11, 3, 3 * 32)),
    ],
)
def test_the_work_of_each_kind_of_run(tiny, name, changes, expected):
    config = AdaptationConfig.load(tiny, [f"method={name}", *changes, *NEEDED.get(name, [])])
    assert tuple(vars(work_of(config, 32, 32)).values()) == expected


def test_what_is_counted_is_what_a_run_predicts(tiny, tmp_path, monkeypatch):
    """SHOT with AdaBN, whose first preparation takes a prediction of its own: every image that is predicted."""
    overrides = [
        "method=shot",
        *SMALL,
        *NEEDED["shot"],
        "adaptation.adapt_batch_norm=true",
        f"output={tmp_path / 'run'}",
    ]
    run = AdaptationRun(AdaptationConfig.load(tiny, overrides))
    predicted, adapted = [], []
    predict, adapt = run.engine.predict, run.engine.adapt_batch_norm
    monkeypatch.setattr(
        run.engine, "predict", lambda batches, count, **how: predicted.append(count) or predict(batches, count, **how)
    )
    monkeypatch.setattr(run.engine, "adapt_batch_norm", lambda batches: adapted.append(32) or adapt(batches))
    run.execute()
    assert sum(predicted) + sum(adapted) == work_of(run.config, 32, 32).predicted


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_dry_run_on_a_device(tiny, in_folder, capsys, kind):
    """FixMatch after a source stage: nothing is computed on the host, and a GPU says how much memory it held."""
    words = ["method=fixmatch", *SMALL, "adaptation.strong={jitter: 0.3}", "source.epochs=1", f"runtime.device={kind}"]
    with pretended(kind):
        assert adapt(["--cfg", str(tiny), "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^cost     11 training steps, 128 images predicted: about \d+ s on {kind}", out, re.MULTILINE)
    assert ("\nmemory   peak 1.0 GiB of the " in out) == (kind == "cuda")


@pytest.mark.parametrize(
    ("done", "todo", "left"),
    [
        ([], [5, 5], None),
        ([], [], 0),
        ([(4, 8)], [], 0),
        ([(4, 8)], [2, 6], 16),  # 2 s a step
        ([(4, 8), (4, 12)], [6], 15),  # the mean, 2.5 s a step
        ([(10, 13), (20, 23)], [30, 40], 33 + 43),  # 3 s and 1 s a step
        ([(10, 10), (20, 22)], [30], 10 * 30 * (1 + 2 * 2.2) / (10 + 40)),  # OLS has -2 + 1.2 w: (0, 1.08)
        ([(10, 30), (20, 20)], [30], 25),  # later ones were faster: their mean
        ([(1, 900), *[(10, 20)] * 5], [10], 20),  # only the last five count
        ([(0, 9)], [5], None),  # a round without a step
    ],
)
def test_seconds_left_by_hand(done, todo, left):
    found = pace.seconds_left(done, todo)
    assert found == left if left is None else found == pytest.approx(left)


def test_seconds_left_by_a_reference():
    """Least squares with a, b >= 0 as scipy finds it, on parts of random cost."""
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    for _ in range(200):
        work, seconds = rng.uniform(1, 100, 5), rng.uniform(0, 50, 5)
        (a, b), _ = nnls(np.stack([np.ones(5), work], 1), seconds)
        found = pace.seconds_left(list(zip(work, seconds, strict=True)), [7.0, 200.0])
        assert found == pytest.approx(2 * a + 207 * b)
