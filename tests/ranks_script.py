"""What every process of tests/core/test_distributed.py's job does; started by torchrun, not a test module by itself."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.random_prediction import random_prediction
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.pseudo_labels import label_target
from uda.core.distributed import Ranks, start
from uda.core.errors import UserError
from uda.evaluation.segmentation import PixelCounts
from uda.models.network import Prediction
from uda.selection.streaming_thresholds import stream_thresholds
from uda.selection.thresholds import class_balanced_thresholds
from uda.training.optimization import Optimization
from uda.training.settings import OptimSettings


def gather(ranks):
    for count in (0, 1, 2, 7, 30):
        whole = np.arange(count * 2, dtype=np.float64).reshape(count, 2)
        mine = whole[ranks.rows(count)]
        assert np.array_equal(ranks.gather_rows(mine, count), whole)
        main = ranks.gather_rows_to_main(mine, count)
        assert np.array_equal(main, whole) if ranks.is_main else len(main) == 0
    flags = np.arange(11) % 3 == 0
    assert np.array_equal(ranks.gather_rows(flags[ranks.rows(11)], 11), flags)
    assert ranks.gather_texts("ä" * ranks.rank) == ["ä" * rank for rank in range(ranks.world)]


def reduce(ranks):
    assert ranks.sum(np.array([ranks.rank, 1])).tolist() == [sum(range(ranks.world)), ranks.world]
    assert ranks.maximum([ranks.rank, -ranks.rank]) == [ranks.world - 1, 0]
    assert ranks.broadcast(b"seven" if ranks.is_main else None) == b"seven"
    assert ranks.broadcast(None) is None
    # weights 1, 2, 3 of the values 0, 1, 2: 8 / 6
    tensors = [torch.full((2,), float(ranks.rank)), torch.zeros(1)]
    ranks.average(tensors, weight=ranks.rank + 1.0)
    assert torch.allclose(tensors[0], torch.full((2,), 8 / 6))


def same(ranks):
    ranks.check_same("the weather", "fine")
    with pytest.raises(UserError, match=r"the weather of process 2 is not that of process 0 \(fine, not rain\)"):
        ranks.check_same(
            "the weather", "rain" if ranks.rank == 2 else "fine", lambda first, other: f"{first}, not {other}"
        )


def gradients(ranks):
    """A parameter that one rank uses, one that all use, one that none does; and the step is that of the mean loss."""
    one, common, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimization = Optimization(
        {"a": [one, unused], "b": [common]}, OptimSettings(lr=1.0, momentum=0.0, weight_decay=0.0), 1, ranks=ranks
    )
    optimization.begin_step()
    loss = (common * (ranks.rank + 1)).sum() + ((one * 3).sum() if ranks.rank == 1 else 0)
    optimization.descend(loss)
    assert torch.equal(one, torch.zeros(3)) and torch.equal(common, torch.full((3,), -1.0)), "3 / 3 and (1 + 2 + 3) / 3"
    assert unused.grad is None and torch.equal(unused, torch.ones(3))
    before = common.detach().clone()
    optimization.descend((common * ranks.rank).sum() + one.sum(), only="a")
    assert torch.equal(common, before) and torch.equal(one, torch.full((3,), -1.0))


def network(ranks):
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer[0].weight.fill_(float(ranks.rank))
    ranks.broadcast_network(layer)
    assert torch.equal(layer[0].weight, torch.zeros(2, 1, 3, 3))


def thresholds(ranks):
    scores = np.random.default_rng(0).random((1000, 5)).astype(np.float32)
    mine = scores[ranks.rows(1000)]
    found = stream_thresholds(lambda: [mine[:100], mine[100:]], 0.2, 5, reduce=ranks.sum)
    assert np.array_equal(found, class_balanced_thresholds(scores, 0.2))


def soft_labels(ranks):
    """AVC's choice with LRENT's soft labels, of each rank's own rows, is that of all rows together."""
    config = AdaptationConfig.load("digits_avh", ["self_training.regularizer=lrent"])
    whole = random_prediction(seed=0)
    mine = Prediction(*(rows[ranks.rows(len(rows))] for rows in (whole.features, whole.logits)), whole.weight)
    found = label_target(mine, config, 0, len(whole.logits), ranks)
    alone = label_target(whole, config, 0, len(whole.logits), Ranks())
    assert np.array_equal(found.labels, alone.labels)
    assert np.array_equal(found.pseudo.selected, alone.pseudo.selected)


def pixels(ranks):
    """Counts of each rank's own images add up to those of all images."""
    predicted, truth = np.random.default_rng(0).integers(0, 4, (2, 10, 5, 7)).astype(np.uint8)
    whole, mine = PixelCounts(4), PixelCounts(4)
    whole.add(predicted, truth)
    mine.add(predicted[ranks.rows(10)], truth[ranks.rows(10)])
    assert np.array_equal(mine.summed(ranks).counts, whole.counts)
    assert mine.counts.sum() < whole.counts.sum()


if __name__ == "__main__":
    with start() as ranks:
        for check in (gather, reduce, same, gradients, network, thresholds, soft_labels, pixels):
            check(ranks)
        Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps([ranks.rank, ranks.world, ranks.local_rank]))
