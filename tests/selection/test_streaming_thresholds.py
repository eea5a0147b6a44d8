"""Thresholds of a stream: bit for bit those of all rows at once, whatever the chunks, the memory and the processes."""

import json
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import BENCHMARKS
from tests.forked import forked_job
from uda.selection.streaming_thresholds import ThresholdSearch, stream_thresholds
from uda.selection.thresholds import class_balanced_thresholds

portions = st.integers(0, 100).map(lambda percent: percent / 100)
# From one bit per pass and room for no score, over many passes, to everything in one.
memories = st.sampled_from([0, 400, 4_000, 100_000, 32 << 20])


def sharp_softmax(rng, n, k, dtype=np.float64):
    """Probabilities of which many are near 1, or, in single precision, equal to it."""
    logits = 8 * rng.standard_normal((n, k))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(dtype)


def any_scores(rng, n, k, kind):
    """A matrix of scores: of probabilities, of few values, or of all positive floats, in either precision."""
    dtype = np.float32 if kind.endswith("32") else np.float64
    if kind.startswith("softmax"):
        return sharp_softmax(rng, n, k, dtype)
    if kind.startswith("ties"):
        return rng.choice(np.array([0.25, 0.5, 1.0, np.nextafter(dtype(1), dtype(0))], dtype), (n, k))
    last = np.array(np.inf, dtype).view(f"i{dtype().itemsize}")  # every pattern of bits from 1 up to infinity's
    return rng.integers(1, last, (n, k)).astype(last.dtype).view(dtype)


kinds = st.sampled_from([f"{kind}{bits}" for kind in ("softmax", "ties", "bits") for bits in (32, 64)])


def split(rng, rows, num_parts):
    """Parts of uneven sizes, empty ones among them."""
    return np.split(rows, np.sort(rng.integers(0, len(rows) + 1, num_parts - 1)))


def together(num_ranks, work):
    """work(rank, reduce) in a thread for each rank; the arrays that they reduce are summed. The results."""
    gathered, results, barrier = [None] * num_ranks, [None] * num_ranks, threading.Barrier(num_ranks, timeout=5)

    def run(rank):
        def reduce(array):
            assert array.dtype == np.int64 and array.ndim == 1
            gathered[rank] = array
            barrier.wait()
            total = sum(gathered)
            barrier.wait()
            array[:] = total  # in place, as all_reduce does
            return array

        try:
            results[rank] = work(rank, reduce)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 300),
    k=st.integers(1, 7),
    portion=portions,
    kind=kinds,
    memory=memories,
    num_chunks=st.integers(1, 5),
)
@example(seed=0, n=300, k=1, portion=1.0, kind="bits64", memory=0, num_chunks=1)
def test_equals_the_definition(seed, n, k, portion, kind, memory, num_chunks):
    rng = np.random.default_rng(seed)
    scores = any_scores(rng, n, k, kind)
    chunks = split(rng, scores, num_chunks)
    lambdas = stream_thresholds(lambda: chunks, portion, k, memory=memory)
    assert lambdas.dtype == np.float64
    assert lambdas.tolist() == class_balanced_thresholds(scores, portion).tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 200),
    portion=portions,
    kind=kinds,
    memory=memories,
    num_ranks=st.integers(2, 4),
)
def test_ranks_agree_on_what_one_process_finds(seed, n, portion, kind, memory, num_ranks):
    """Rows split at random, so that some ranks have none, and chunks of one row within a rank."""
    rng = np.random.default_rng(seed)
    scores = any_scores(rng, n, 3, kind)
    parts = split(rng, scores, num_ranks)

    def work(rank, reduce):
        chunks = np.split(parts[rank], len(parts[rank])) if len(parts[rank]) else []
        return stream_thresholds(lambda: chunks, portion, 3, reduce=reduce, memory=memory).tolist()

    assert together(num_ranks, work) == [class_balanced_thresholds(scores, portion).tolist()] * num_ranks


def test_ranks_of_unlike_precision_pass_as_often():
    """Rank 0 feeds float32 only and could stop at its spacing; rank 1's float64 scores lie between two float32."""
    rng = np.random.default_rng(1)
    parts = [np.ones((50, 1), np.float32), 1 - 1e-9 * rng.random((50, 1))]

    def work(rank, reduce):
        search = ThresholdSearch(1, 0.7, reduce=reduce, memory=0)
        while not search.done:
            search.update(parts[rank])
            search.finish_pass()
        return search.passes, search.thresholds.tolist()

    ours, theirs = together(2, work)
    assert ours == theirs
    assert ours[1] == class_balanced_thresholds(np.concatenate(parts), 0.7).tolist()


RANK = """
import json, sys
import numpy as np
import torch
from uda.selection.streaming_thresholds import stream_thresholds

def reduce(array):
    torch.distributed.all_reduce(torch.from_numpy(array))
    return array

torch.distributed.init_process_group("gloo")
rank, rows = torch.distributed.get_rank(), np.load(sys.argv[1] + "/rows.npy")
mine = rows[::10] if rank == 0 else np.delete(rows, np.s_[::10], axis=0)
chunks = np.array_split(mine, 7)
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(stream_thresholds(lambda: chunks, 0.35, 5, reduce=reduce, memory=200_000).tolist(), file)
torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path):
    """Rank 0 has one row in ten, and rank 1 all the others of the same hundred thousand."""
    rows = sharp_softmax(np.random.default_rng(2), 100_000, 5)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "rank.py").write_text(RANK)
    codes, output = forked_job(2, tmp_path / "rank.py", tmp_path)
    assert codes == [0, 0], output
    expected = class_balanced_thresholds(rows, 0.35).tolist()
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected] * 2


def test_worked_by_hand():
    """Class 0 wins .9 .8 .6 .5, class 1 wins .7 .6: half of each is lambda = (.8, .7)."""
    search = ThresholdSearch(2, 0.5)
    while not search.done:
        search.update(np.array([[0.9, 0.1], [0.2, 0.7], [0.5, 0.4]]))
        search.update_best(np.array([0, 1, 0]), np.array([0.6, 0.6, 0.8]))
        search.finish_pass()
    assert search.thresholds.tolist() == [0.8, 0.7]
    assert search.passes == 1


def passes(scores, memory, portion=0.3):
    search = ThresholdSearch(scores.shape[1], portion, memory=memory)
    while not search.done:
        search.update(scores)
        search.finish_pass()
    assert search.thresholds.tolist() == class_balanced_thresholds(scores, portion).tolist()
    return search.passes


def test_number_of_passes():
    """One while all scores find room, two while the candidates do; where memory is short it grows with the digits.

    The key of a positive double has 63 bits. Eight bins for each of two classes (memory 1,024) take off 3 of them a
    pass: of eight octaves the first leaves one, 52 digits, and 18 more leave none.
    """
    scores = sharp_softmax(np.random.default_rng(3), 50_000, 2)
    assert passes(scores, memory=32 << 20) == 1
    assert passes(scores, memory=1 << 20) == 2
    assert passes(np.full((1000, 2), [0.75, 0.5]), memory=1024) == 1 + 18


def test_the_outermost_bin_ends_where_the_next_begins():
    """The first pass's lowest bin ends 2^-11 above 1/128, in the midst of a bin of the second pass.

    Half of the scores lie below that end, too many to hold, and half in the other part of the second pass's bin.
    """
    rng = np.random.default_rng(7)
    scores = np.concatenate([rng.uniform(0, 2**-11, 60_000), rng.uniform(2**-10, 2**-5, 60_000)])[:, None]
    assert passes((1 + scores) / 128, memory=1 << 20, portion=0.75) == 4


def test_many_equal_scores_need_no_room():
    """A million float32 scores of 1.0 and as many just below it, with room for 4,096."""
    scores = np.ones((2_000_000, 1), np.float32)
    scores[::2] = np.nextafter(np.float32(1), np.float32(0))
    assert passes(scores, memory=4096 * 24) <= 4


def test_memory_does_not_grow_with_the_rows():
    def peak(num_chunks):
        def chunks():
            for seed in range(num_chunks):
                rng = np.random.default_rng(seed)
                yield rng.integers(0, 4, 20_000).astype(np.int8), rng.random(20_000, np.float32) + np.float32(1e-6)

        tracemalloc.start()
        stream_thresholds(chunks, 0.25, 4, memory=1 << 20)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(10), peak(100)
    assert many < 1.02 * few
    assert many < 4 << 20  # 1 MiB for the search; the rest is the chunk's


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_and_half_types(dtype):
    scores = torch.from_numpy(sharp_softmax(np.random.default_rng(4), 500, 3) + 1e-3).to(dtype).requires_grad_()
    expected = class_balanced_thresholds(scores, 0.4).tolist()
    best, classes = scores.detach().max(dim=1)
    assert stream_thresholds(lambda: scores.split(70), 0.4, 3).tolist() == expected
    pairs = list(zip(classes.split(70), best.split(70), strict=True))
    assert stream_thresholds(lambda: pairs, 0.4, 3).tolist() == expected


def test_precisions_may_mix():
    singles, doubles = np.full((40, 1), 0.1, np.float32), np.linspace(0.1, 0.1 + 1e-8, 60)[:, None]
    expected = class_balanced_thresholds(np.concatenate([singles.astype(np.float64), doubles]), 0.8)
    for memory in (0, 32 << 20):
        assert stream_thresholds(lambda: [singles, doubles], 0.8, 1, memory=memory).tolist() == expected.tolist()


def test_chunks_larger_than_a_block_and_read_only_strided_rows():
    rng = np.random.default_rng(5)
    classes, best = rng.integers(0, 3, 200_000), rng.random(200_000) + 1e-9
    scores = np.full((100_000, 3), 1e-12)
    scores[np.arange(100_000), classes[::2]] = best[::2]
    classes.flags.writeable = best.flags.writeable = False
    lambdas = stream_thresholds(lambda: [(classes[::2], best[::2])], 0.15, 3, memory=100_000)
    assert lambdas.tolist() == class_balanced_thresholds(scores, 0.15).tolist()


def test_more_classes_than_rows():
    scores = np.random.default_rng(6).random((30, 500)).astype(np.float32)
    for memory in (0, 32 << 20):
        lambdas = stream_thresholds(lambda: [scores], 1.0, 500, memory=memory)
        assert lambdas.tolist() == class_balanced_thresholds(scores, 1.0).tolist()


def test_no_rows():
    search = ThresholdSearch(3, 0.5)
    search.finish_pass()
    assert search.done and np.isinf(search.thresholds).all()


@pytest.mark.parametrize("row", [[0.5, np.nan], [0.0, 0.0], [-1.0, -2.0], [np.inf, 0.5]], ids=str)
def test_scores_that_cannot_be_divided_by_are_refused(row):
    scores = np.array([[0.6, 0.4], row, row])
    with pytest.raises(ValueError, match=r"2 of 3 rows of scores .*first is row 1"):
        ThresholdSearch(2, 0.5).update(scores)
    with pytest.raises(ValueError, match=r"2 of 3 rows of scores .*first is row 1"):
        ThresholdSearch(2, 0.5).update_best(np.zeros(3, np.int8), scores.max(axis=1))


@pytest.mark.parametrize("portion", [-0.1, 1.01, np.nan])
def test_portion_outside_of_its_range_is_refused(portion):
    with pytest.raises(ValueError, match="portion must lie in"):
        ThresholdSearch(2, portion)


@pytest.mark.parametrize(
    ("classes", "best", "message"),
    [
        (np.zeros(2, int), np.ones(3), "must both be"),
        (np.zeros((2, 2), int), np.ones((2, 2)), "must both be"),
        (np.zeros(2), np.ones(2), "classes must be integers in 0..1, got float64"),
        (np.array([0, 2]), np.ones(2), "classes must be integers in 0..1"),
        (np.array([-1, 0]), np.ones(2), "classes must be integers in 0..1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(classes, best, message):
    with pytest.raises(ValueError, match=message):
        ThresholdSearch(2, 0.5).update_best(classes, best)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="scores must have 3 columns"):
        ThresholdSearch(3, 0.5).update(np.ones((5, 2)))
    with pytest.raises(ValueError, match="at least one class"):
        ThresholdSearch(0, 0.5)


def test_passes_over_other_rows_are_noticed():
    """A generator that is spent after the first pass, a row that goes missing, and a score that changes."""
    rows = np.linspace(0.1, 0.9, 100)[:, None]
    spent = iter([rows])
    with pytest.raises(ValueError, match=r"pass 2 got other scores .*\(0 rows after 100\)"):
        stream_thresholds(lambda: spent, 0.5, 1, memory=0)
    for second in (rows[1:], np.where(rows > 0.5, 1e-3, rows)):
        search = ThresholdSearch(1, 0.5, memory=0)
        search.update(rows)
        search.finish_pass()
        search.update(second)
        with pytest.raises(ValueError, match="pass 2 got other scores"):
            search.finish_pass()


def test_other_rows_are_noticed_on_every_rank():
    def work(rank, reduce):
        search = ThresholdSearch(1, 0.5, reduce=reduce, memory=0)
        search.update(np.full((10, 1), 0.5))
        search.finish_pass()
        search.update(np.full((10 + rank, 1), 0.5))
        search.finish_pass()

    assert [str(error)[:28] for error in together(2, work)] == ["pass 2 got other scores than"] * 2


def test_use_out_of_turn_is_refused():
    search = ThresholdSearch(1, 0.5)
    with pytest.raises(RuntimeError, match="not known yet"):
        _ = search.thresholds
    search.update(np.ones((4, 1)))
    search.finish_pass()
    for late in (lambda: search.update(np.ones((4, 1))), search.finish_pass):
        with pytest.raises(RuntimeError, match="known already"):
            late()


@pytest.mark.parametrize("name", sorted(name for name in BENCHMARKS if name.startswith("thresholds_")))
def test_the_benchmarks_sides_agree(name):
    contest = BENCHMARKS[name](1e-4)
    ours, floor = contest.ours(), contest.floor()
    assert ours.tolist() == floor.tolist() and np.isfinite(ours).any()
