"""Rows of a batch by their kinds, known on the host."""

import numpy as np
import pytest
import torch

from uda.data.batch import Batch, Rows

MASKS = {"none": [0] * 5, "all": [1] * 5, "neighbours": [0, 1, 1, 0, 0], "runs": [1, 1, 0, 1, 0], "empty": []}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_rows_are_those_of_their_mask(mask):
    mask = np.array(mask, dtype=bool)
    rows, tensor = Rows(mask), torch.rand(len(mask), 2)
    assert len(rows) == mask.sum() and len(rows.slices) <= 2
    assert torch.equal(rows.of(tensor), tensor[mask]) and torch.equal(rows.others.of(tensor), tensor[~mask])
    if len(mask):
        assert torch.equal(rows.joined(tensor[mask], tensor[~mask]), tensor)
    if len(rows.slices) == 1:
        assert rows.of(tensor).data_ptr() == tensor[rows.slices[0]].data_ptr()


def test_a_batch_knows_its_rows_wherever_it_goes_without_looking_at_it_there():
    """Two source images and six of the target, of which two are strong views and two have a true label."""
    labels = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 1]])
    is_target, view = torch.arange(8) > 1, (torch.arange(8) > 5).long()
    annotated = torch.tensor([True, True, False, False, True, False, False, True])
    batch = Batch(torch.rand(8, 1, 2, 2), labels, torch.tensor([0, 1, 2, 2, 3, 2, 2, 3]), is_target, view, annotated)
    kinds = {
        "source": ~is_target,
        "target": is_target,
        "annotated": annotated,
        "unannotated": ~annotated,
        "labelled": annotated,
        "unlabelled": ~annotated,
        "strong": view == 1,
        "plain": ~annotated & (view == 0),
    }
    even = batch.dealt(2)[0]
    for name, mask in kinds.items():
        assert torch.from_numpy(getattr(batch, f"{name}_rows").mask).equal(mask)
        assert torch.from_numpy(getattr(even, f"{name}_rows").mask).equal(mask[::2])
    assert batch.domain_rows(2).slices == (slice(2, 4), slice(5, 7)) and len(batch.domain_rows(3)) == 2
    # The meta device has no values: to look at one raises.
    for moved in (batch.to("meta"), batch.to("meta").dealt(2)[0].to("meta")):
        assert all(len(getattr(moved, f"{name}_rows")) for name in kinds) and len(moved.domain_rows(2)) > 0
