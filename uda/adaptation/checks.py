"""Checks of a config against its method and the number of processes, before anything is built."""

from collections.abc import Iterable

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS, AdaptationMethod
from uda.core.errors import UserError
from uda.data.banks import own_arrays
from uda.data.features import OF_MAKING, UNREAD
from uda.tables.recipe import below
from uda.training.method import Method


def unread_notes(config: AdaptationConfig, changed: Iterable[str]) -> list[str]:
    """A note on each setting that a user changed and that the method does not read, and one on those of images.

    `changed`: dotted keys.
    """
    method = ADAPTATION_METHODS[config.method]
    reads = {"self_training": method.rounds, "adaptation": method.adapts}
    unread = () if config.data.features is None else (*UNREAD, *(OF_MAKING if own_arrays(config.bank) else ()))
    notes, of_images = [], []
    for key in changed:
        if not reads.get(key.split(".")[0], True):
            notes.append(f"note: method '{config.method}' does not read {key}")
        elif below(key, unread):
            of_images.append(key)
    if of_images:
        notes.append(f"note: a run on features does not read {', '.join(of_images)}")
    return notes


def check_batches(config: AdaptationConfig, world: int) -> None:
    """Raise UserError for a batch that does not fit the method or the job of `world` processes.

    The check comes first, because such a batch may otherwise fail after hours of training.
    """
    batch, parts = config.self_training.batch, world * config.runtime.accumulate
    sizes = {"source.batch_size": config.source.batch_size}
    method = ADAPTATION_METHODS[config.method]
    _check_make_up(method, config.method, config)
    if config.runtime.accumulate > 1 and method.step is not Method.step:
        raise UserError(f"runtime.accumulate: method '{config.method}' updates several times per batch; set it to 1")
    if method.adapts:
        domains = config.adaptation.batch
        sizes["adaptation.batch"] = domains.source + domains.target
        shares = {"adaptation.batch.source": domains.source, "adaptation.batch.target": domains.target}
        stage = config.adaptation
    else:
        shares = {"self_training.batch.unlabelled": batch.unlabelled} if method.rounds else {}
        stage = config.self_training
    if config.data.target_labelled is not None:
        shares["data.labelled_per_batch"] = config.data.labelled_per_batch
    # Losses are means over a domain's images, so every part needs the same number of them.
    least = 2 * parts if stage.forward == "separate" and stage.batch_norm == "train" else parts
    for key, size in shares.items():
        if size % parts or 0 < size < least:
            raise UserError(
                f"{key}: {size} images cannot be divided evenly among {parts} parts (processes times "
                f"runtime.accumulate){' of at least two images' if least > parts else ''}; change it, or the number of "
                "processes"
            )
    if batch.mixed and method.rounds and stage.forward == "separate" and stage.batch_norm == "train":
        raise UserError(
            "self_training.batch.mixed: with self_training.forward=separate BatchNorm needs two images of a domain, "
            "but a batch drawn at random may hold only one; give 'source' and 'selected', at least 2 each"
        )
    if method.rounds:
        alone = config.self_training.on_empty == "continue"  # a batch may hold source images only
        fixed = (batch.source or 0) + (0 if alone else batch.selected or 0)
        sizes["self_training.batch"] = batch.mixed or fixed
    for key, size in sizes.items():
        if parts > 1 and size < 2 * parts:
            raise UserError(
                f"{key}: a batch of {size} images is too small for {parts} parts (processes times "
                "runtime.accumulate), which need at least two images each; enlarge it, or start fewer processes"
            )
    if config.runtime.sync_batch_norm and stage.forward == "separate":
        raise UserError(
            f"runtime.sync_batch_norm: cannot be combined with {'adaptation' if method.adapts else 'self_training'}."
            "forward=separate, because a process may have no image of a domain"
        )
    begins_anew = method.adapts and method.needs_source
    if not (begins_anew or config.trains_source or config.source.checkpoint):
        raise UserError(
            f"source.epochs: 0 leaves method '{config.method}' without a source model; train one, or give "
            "its weights as source.checkpoint"
        )


def _check_make_up(method: type[AdaptationMethod], name: str, config: AdaptationConfig) -> None:
    """Raise UserError for a composition of the batch that a method cannot work with."""
    if not method.adapts:
        return
    batch = config.adaptation.batch
    if method.needs_source and batch.source < 2:
        raise UserError(
            f"adaptation.batch.source: method '{name}' needs both domains in every batch, and at least two source "
            f"images for BatchNorm; got {batch.source}"
        )
    if not method.needs_source and batch.source:
        raise UserError(f"adaptation.batch.source: method '{name}' is source-free; set it to 0, not {batch.source}")
    if method.views > 1 and config.adaptation.strong is None and config.data.features is None:
        raise UserError(f"adaptation.strong: method '{name}' compares two views of a target image; set the strong one")
