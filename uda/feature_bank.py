"""Makes feature banks: the features of every image of every domain, computed once by a network that is not trained."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.core.files import OutputError, reserve, write_text
from uda.core.progress import progress
from uda.core.yaml_files import find_config, read_config
from uda.data.banks import FORMAT, SUFFIX, TRACES, chunks, file_stem, header, read_description
from uda.data.domains import bank_domains, load_alone
from uda.data.images import ImageFiles, Images
from uda.data.loaders import predict_batches
from uda.data.transforms import Transform, make_predict, make_train
from uda.generalization.config import GeneralizationConfig
from uda.kinds import kind_of
from uda.models.backbones import create_backbone
from uda.models.feature_maker import made_by, weights_digest
from uda.models.network import Network
from uda.trained_run import TrainedRun
from uda.training.config import RunConfig
from uda.training.engine import Engine, seed_everything
from uda.training.run_folder import locked
from uda.training.stages import INITIAL_WEIGHTS

#: Least seconds between two points from which an interrupted pass goes on.
SECONDS_BETWEEN_NOTES = 10.0


@dataclass(frozen=True)
class _Maker:
    """The network and the transforms that make features, and what the bank tells about them."""

    engine: Engine
    transforms: list[Transform]
    """The predict transform, then the random transform of every augmented view."""
    told: dict[str, Any]

    @property
    def width(self) -> int:
        """D."""
        return self.engine.network.weight.shape[1]


def kind_of_bank(config: str | Path | RunConfig) -> type[RunConfig]:
    """The config class of `uda adapt` or of `uda generalize`. Raises UserError for any other config."""
    kind = type(config) if isinstance(config, RunConfig) else kind_of(read_config(find_config(config))[0])
    if kind not in (AdaptationConfig, GeneralizationConfig):
        raise UserError(f"{config}: not a config of `uda adapt` or `uda generalize`")
    return kind


def make_bank(
    config: RunConfig,
    folder: str | Path,
    *,
    views: int = 0,
    run: TrainedRun | None = None,
    log: Callable[[str], None] | None = print,
    ranks: Ranks | None = None,
) -> list[Path]:
    """Compute the features of every image of every domain of a config, and write them to a feature bank.

    A domain whose file is there is not computed again. An interrupted call goes on where it stopped.

    Args:
        config: names data, backbone and transforms. Random initial weights (`model.weights=none`) are those of a run
            with its seed.
        folder: the bank.
        views: number of augmented views of each image. They are drawn by the strong augmentation of the config
            (`adaptation.strong`), or by that of target images in training.
        run: take this run's network up to the classifier in place of the config's backbone.
        log: gets lines for people. None: none.
        ranks: the processes of a job. They share the images. Rank 0 writes.

    Returns:
        The files, one per domain.

    Raises:
        UserError: the data or the network cannot be used, a file of the bank is of other images or another network, or
            it cannot be written.
    """
    if views < 0:
        raise UserError(f"`views`: must be 0 or more; got {views}")
    ranks = ranks or Ranks()
    say = log if log is not None and ranks.is_main else lambda line: None
    folder = Path(os.path.expanduser(folder))
    names = bank_domains(config.data, say)
    stems = [file_stem(name) for name in names]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UserError(f"two domains have the same last part of their paths, {twice[0]}; rename a folder")
    maker = _maker(config, views, run, say, ranks)
    files = []
    for name, stem in zip(names, stems, strict=True):
        images, labels, classes = load_alone(config.data, name, config.seed, say, ranks)
        told = {
            "format": FORMAT,
            "domain": name,
            "classes": list(classes),
            "images": _images_checksum(images, ranks),
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
            "made_by": maker.told,
        }
        file = folder / f"{stem}{SUFFIX}"
        if _is_there(file, told, ranks):
            say(f"{file} is there already")
        else:
            _make_domain(file, images, labels, told, maker, log if ranks.is_main else None, ranks)
            say(f"{file}: {len(images):,} images, features of width {maker.width}")
        files.append(file)
    return files


def _maker(config: RunConfig, views: int, run: TrainedRun | None, say: Callable, ranks: Ranks) -> _Maker:
    transforms = config.transforms if run is None else run.config.transforms
    told = made_by(config.model if run is None else run.config.model, transforms)
    if run is None:
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = Network(*create_backbone(config.model.backbone, config.model.weights, len(transforms.mean)), 1)
        told["seed"] = config.seed
    else:
        network = run.network_on_images
        told["run"] = {"folder": str(run.folder), "weights": run.weights}
    engine = Engine(network, config.runtime, say, ranks)
    digest = weights_digest(engine.network.backbone, engine.network.head)
    told |= {"digest": digest, "precision": engine.settings.predict_precision, "views": views}
    passes: list[Transform] = [make_predict(transforms)]
    if views:
        strong = getattr(getattr(config, "adaptation", None), "strong", None)
        augment = strong or getattr(transforms, "target", None) or getattr(config, "augment", None)
        told["augment"] = augment.model_dump(mode="json")
        passes += [make_train(transforms, augment)] * views
    return _Maker(engine, passes, told)


def _images_checksum(images: Images, ranks: Ranks) -> str:
    """Digest of the names and contents of image files and the rules by which they are read, or of pixels in memory."""
    digest = hashlib.sha256()
    if ranks.is_main:
        digest.update("\0".join(images.ids).encode("utf-8", "surrogateescape"))
        if isinstance(images, ImageFiles):
            digest.update(json.dumps(images.reading.model_dump(mode="json")).encode())
            some = [images.ids[start : start + 64] for start in range(0, len(images.ids), 64)]
            with ThreadPoolExecutor(8) as pool:
                for of_files in pool.map(partial(_file_digests, images.root), some):
                    digest.update(of_files)
        else:
            digest.update(images.together(np.arange(len(images))).numpy().tobytes())
    return ranks.broadcast(digest.hexdigest().encode()).decode()


def _file_digests(root: Path, names: Sequence[str]) -> bytes:
    """The digests of some files, one after another."""
    found = b""
    for name in names:
        try:
            found += hashlib.sha256((root / name).read_bytes()).digest()
        except OSError as error:
            raise UserError(f"{root / name}: cannot be read: {error.strerror or error}; restore the file") from None
    return found


def _is_there(file: Path, told: Mapping[str, Any], ranks: Ranks) -> bool:
    """Whether the bank has the file. Raises UserError if it was made of other images or by another network."""
    there = read_description(file) if ranks.is_main and file.is_file() else None
    there = json.loads(ranks.broadcast(json.dumps(there).encode()))
    if there is None:
        return False
    differing = [f"other {key}" for key in ("images", "labels", "classes", "domain") if there[key] != told[key]]
    mine, other = ({k: v for k, v in told["made_by"].items() if k not in TRACES} for told in (told, there))
    keys = [key for key in sorted({*mine, *other}) if mine.get(key) != other.get(key)]
    if "views" in keys:
        differing.append(f"{other['views']} views (now {mine['views']})")
        keys = [key for key in keys if key not in ("views", "augment")]  # no augmentation is told without views
    for key in keys:
        told_by_name = isinstance(mine.get(key), str) and isinstance(other.get(key), str) and key != "digest"
        differing.append(f"{key} {other[key]} (now {mine[key]})" if told_by_name else f"other {_WORDS.get(key, key)}")
    if differing:
        raise UserError(
            f"{file} was made with {', '.join(differing)}; choose another `folder`, or delete the file to make it again"
        )
    return True


#: Parts of `made_by` in words.
_WORDS = {"digest": "weights", "augment": "augmentation of the views"}


def _make_domain(
    file: Path,
    images: Images,
    labels: np.ndarray,
    told: dict[str, Any],
    maker: _Maker,
    log: Callable | None,
    ranks: Ranks,
) -> None:
    """Compute the features of a domain and write its file. A file of an earlier, interrupted call is continued."""
    count, size = len(images), maker.engine.predict_batch_size
    writer = _Writer(file, images.ids, labels, told, maker.width, len(maker.transforms) - 1) if ranks.is_main else None
    done = json.loads(ranks.broadcast(str(writer.done).encode() if writer else None))
    for number, transform in enumerate(maker.transforms):
        first = max(0, done - number * count)
        if first >= count:
            continue
        what = "features" if number == 0 else f"view {number}"
        blocks = _blocks(maker, images, transform, number, first, size, ranks)
        total = -(-(count - first) // (size * ranks.world))
        noted = time.monotonic()
        for start, features in progress(blocks, f"{file.stem}, {what}", total, log):
            if writer:
                writer.write(number, start, features)
                if time.monotonic() - noted >= SECONDS_BETWEEN_NOTES:
                    writer.note(number * count + start + len(features))
                    noted = time.monotonic()
    if writer:
        writer.finish()


def _blocks(
    maker: _Maker, images: Images, transform: Transform, view: int, first: int, size: int, ranks: Ranks
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of features in order: the number of the first image, and the features on rank 0.

    A block has a batch for each process. So the batches are those of a single process. The random transform of an image
    depends on the view and the image's number alone.
    """
    count, block = len(images), size * ranks.world
    starts = range(first, count, block)
    shares = [np.arange(start + size * ranks.rank, min(start + size * (ranks.rank + 1), count)) for start in starts]
    batches = predict_batches(
        images,
        transform,
        batch_size=size,
        workers=maker.engine.workers(images.in_memory),
        rows=np.concatenate(shares),
        seed=view,
    )
    cure = f"lower runtime.predict_batch_size ({size} now)"
    found = maker.engine.predict_each(((batch, None) for batch in maker.engine.delivered(batches)), cure)
    for start, share in zip(starts, shares, strict=True):
        features = np.zeros((size, maker.width), np.float32)
        if len(share):
            features[: len(share)] = next(found)[0].features
        yield start, ranks.gather_rows_to_main(features, block)[: count - start]


class _Writer:
    """Writes a file of a bank in parts. What is written survives a kill, and the next call goes on from there.

    No other process writes to the bank meanwhile: two would write to the same unfinished file.

    Args:
        file: the file. Until it is complete, it lies beside with the ending `.part`, and a note tells how far it is.
        ids, labels: names and labels (N,) of the images.
        told: the description.
        width: D.
        views: V.
    """

    def __init__(
        self, file: Path, ids: Sequence[str], labels: np.ndarray, told: dict[str, Any], width: int, views: int
    ):
        self.file, self.told = file, told
        self.part, self._note = (file.with_name(f".{file.name}.{ending}") for ending in ("part", "json"))
        names = np.frombuffer("\0".join(ids).encode("utf-8", "surrogateescape"), np.uint8)
        self._shapes = {"features": ("F32", (len(ids), width)), "labels": ("I64", labels.shape)}
        if views:
            self._shapes["views"] = ("F32", (len(ids), views, width))
        self._shapes["ids"] = ("U8", names.shape)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.file.parent, "`folder`", "another one")
            self.done = self._rows_done()
            self._open(labels, names)
        except OSError as error:
            raise OutputError(file, error) from error

    def _rows_done(self) -> int:
        """Rows that an earlier call has written, counted through all views; 0 to begin anew."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        return note["done"] if note["told"] == self.told and self.part.is_file() else 0

    def _open(self, labels: np.ndarray, names: np.ndarray) -> None:
        # The checksum is written at the end, when it is known. The header has the same length with any checksum.
        content, places = header(self.told | {"checksum": "0" * 64}, self._shapes)
        if not self.done:
            with open(self.part, "wb") as file:
                file.write(content)
                reserve(file, places["ids"] + len(names))
            for name, values in (("labels", labels), ("ids", names)):
                np.memmap(self.part, values.dtype, "r+", places[name], values.shape)[:] = values
        self._arrays = [np.memmap(self.part, np.float32, "r+", places["features"], self._shapes["features"][1])]
        self._maps = [self._arrays[0]]
        if "views" in self._shapes:
            self._maps.append(np.memmap(self.part, np.float32, "r+", places["views"], self._shapes["views"][1]))
            self._arrays += list(self._maps[1].swapaxes(0, 1))

    def write(self, view: int, start: int, features: np.ndarray) -> None:
        """Write features (n, D) from image `start` on. `view` 0: the plain images. Raises UserError if not finite."""
        if not np.isfinite(features).all():
            raise UserError(f"{self.file}: the network gives features that are not finite; check model.weights")
        self._arrays[view][start : start + len(features)] = features

    def note(self, done: int) -> None:
        """Force what is written to the disk, and note that the first `done` rows are."""
        self._flush()
        write_text(self._note, json.dumps({"told": self.told, "done": done}))

    def finish(self) -> None:
        """Complete the file and give it its name."""
        self._flush()
        digest = hashlib.sha256(json.dumps(self.told, sort_keys=True).encode())
        for array in self._maps:
            for part in chunks(array):
                digest.update(part)
        content, _ = header(self.told | {"checksum": digest.hexdigest()}, self._shapes)
        try:
            with open(self.part, "r+b") as file:
                file.write(content)
                os.fsync(file.fileno())
            os.replace(self.part, self.file)
        except OSError as error:
            raise OutputError(self.file, error) from error
        self._note.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _flush(self) -> None:
        for array in self._maps:
            array.flush()
