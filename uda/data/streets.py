"""Street scenes that the program draws, with the exact class of every pixel. They need no download.

A scene is a street that runs away from the viewer, seen by a camera of random height, place and direction. Sky, ground
and rows of houses are found pixel by pixel, by where the pixel's ray ends. Poles, trees, people and cars are then drawn
as polygons, from far to near, at twice the size. The classes are those of CamVid (Brostow et al., Pattern Recognition
Letters 2009) as they are commonly put together: eleven.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from uda.core.errors import UserError
from uda.data.images import ImageArray, Images
from uda.data.label_maps import LabelMaps, MapArray

HEIGHT, WIDTH = 192, 256

CLASSES = (
    "sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
SKY, BUILDING, POLE, ROAD, SIDEWALK, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

#: Red, green and blue of each class, for label maps that a person looks at. They are those of the card `camvid`.
COLORS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip

#: Number of scenes of the data set.
COUNT = 1200

_Point = tuple[float, float]
_Colour = tuple[int, ...]


def domain(name: str, seed: int) -> tuple[Images, LabelMaps]:
    """The scenes of the domain `rendered`, whose number is `COUNT`. Raises UserError for another name."""
    if name != "rendered":
        raise UserError(f"'{name}' is not a domain of the drawn streets (known: rendered)")
    images, maps = street_scenes(COUNT, seed)
    return ImageArray(images, [f"rendered/{i:05d}" for i in range(COUNT)]), MapArray(maps)


def street_scenes(count: int, seed: int, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Street scenes: images (count, 3, 192, 256) and label maps (count, 192, 256), both uint8.

    Scene i is `street_scene((seed, i))`, whatever the count and the threads are.
    """
    images = np.empty((count, 3, HEIGHT, WIDTH), dtype=np.uint8)
    maps = np.empty((count, HEIGHT, WIDTH), dtype=np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        for i, scene in enumerate(pool.map(lambda i: street_scene((seed, i)), range(count))):
            images[i], maps[i] = scene
    return images, maps


def street_scene(seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """One street scene: its image (3, 192, 256) and its label map (192, 256) of train ids 0..10, both uint8."""
    street = _Street(np.random.default_rng(seed))
    canvas = _Canvas(*street.background())
    _Things(street, canvas).draw()
    pixels, label_map = canvas.shrunk()
    return np.ascontiguousarray(_as_photo(pixels, street.random).transpose(2, 0, 1)), label_map


class _Rays(NamedTuple):
    """Direction of each pixel's ray, each (192, 256)."""

    right: np.ndarray
    ahead: np.ndarray
    down: np.ndarray


class _Row(NamedTuple):
    """A box beside the street: a house or a hedge."""

    sign: int
    """-1: on the left, 1: on the right."""
    back: float
    """Distance of its face from the middle of the street, in metres."""
    near: float
    """Where it starts, in metres ahead of the viewer."""
    far: float
    """Where it ends."""
    tall: float
    label: int


class _Street:
    """Street, camera and light of a scene. Lengths are in metres: x right, y up from the ground, z ahead."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        self.focal = random.uniform(0.85, 1.25) * WIDTH
        self.eye = random.uniform(1.1, 1.9)
        self.middle = WIDTH / 2 + random.normal(0, 6), HEIGHT * random.uniform(0.42, 0.58)
        yaw = random.normal(0, 0.06)
        self.cos, self.sin = np.cos(yaw), np.sin(yaw)
        self.road = random.uniform(3.0, 7.0)  # half of its width
        self.shift = random.uniform(-0.5, 0.5) * self.road  # of the camera from the middle of the road
        self.walk = random.uniform(1.5, 4.5)
        self.light = random.uniform(0.45, 1.15)
        self.cast = 1 + random.normal(0, 0.05, 3)
        self.haze = random.uniform(0.001, 0.012)
        self.bare = random.random() < 0.35  # its trees have no leaves
        self.horizon = np.zeros(3)

    def project(self, x: float, y: float, z: float) -> _Point:
        """Where a point of the street is on the canvas, which has twice the scene's size."""
        x = x - self.shift
        across, ahead = self.cos * x - self.sin * z, self.sin * x + self.cos * z
        ahead = max(ahead, 0.3)
        u, v = self.middle
        return 2 * (u + self.focal * across / ahead), 2 * (v + self.focal * (self.eye - y) / ahead)

    def scale(self, z: float) -> float:
        """Pixels of the canvas per metre at a distance."""
        return 2 * self.focal / max(z, 1)

    def shade(self, colour: Sequence[float] | np.ndarray, z: float, gain: float = 1.0) -> _Colour:
        """A colour in the scene's light, seen through the haze from a distance."""
        clear = np.exp(-self.haze * z)
        lit = np.asarray(colour, float) * self.light * gain * self.cast
        return tuple(int(value) for value in np.clip(lit * clear + self.horizon * (1 - clear), 0, 255))

    def background(self) -> tuple[np.ndarray, np.ndarray]:
        """Sky, ground, rows of houses and what closes the street: image (192, 256, 3) and label map, both uint8."""
        v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        dx, dy = (u - self.middle[0]) / self.focal, (v - self.middle[1]) / self.focal
        rays = _Rays(self.cos * dx + self.sin, self.cos - self.sin * dx, dy)
        image = self._sky(v)
        label_map = np.full((HEIGHT, WIDTH), SKY, np.uint8)
        depth = np.full((HEIGHT, WIDTH), 1e9, np.float32)
        self._ground(rays, image, label_map, depth)
        for sign in (-1, 1):
            self._side(sign, rays, image, label_map, depth)
        if self.random.random() < 0.75:
            self._end(rays, image, label_map, depth)
        clear = np.exp(-self.haze * np.minimum(depth, 500))[..., None]
        image = np.where((label_map != SKY)[..., None], image * clear + self.horizon * (1 - clear), image)
        return np.clip(image * self.cast, 0, 255).astype(np.uint8), label_map

    def _sky(self, v: np.ndarray) -> np.ndarray:
        random = self.random
        blue = random.random() < 0.5
        top = np.array([95, 145, 215] if blue else [170, 178, 188]) * random.uniform(0.8, 1.15)
        low = np.array([215, 225, 235]) * random.uniform(0.85, 1.1)
        share = np.clip(v / max(self.middle[1], 1), 0, 1)[..., None]
        image = top * (1 - share) + low * share
        image += (_noise(random, (HEIGHT, WIDTH), 3) * random.uniform(3, 22))[..., None]
        self.horizon = np.clip(low, 0, 255) * min(self.light + 0.2, 1.1)
        return image * min(self.light + 0.25, 1.1)

    def _ground(self, rays: _Rays, image: np.ndarray, label_map: np.ndarray, depth: np.ndarray) -> None:
        """The road, with its marks and shadows, the sidewalks, and grass or pavement beyond them."""
        random = self.random
        distance = np.where(rays.down > 1e-4, self.eye / np.maximum(rays.down, 1e-4), 1e9)
        x, z = distance * rays.right + self.shift, distance * rays.ahead
        seen = (rays.down > 1e-4) & (z < 400)
        side = np.abs(x)
        kerb = self.road + self.walk
        road, walk, verge = side < self.road, (side >= self.road) & (side < kerb), side >= kerb
        grass = random.random() < 0.45

        ground = np.empty((HEIGHT, WIDTH, 3))
        ground[:] = np.array([1, 1, 1.03]) * random.uniform(75, 135)
        ground[walk] = np.array([1.04, 1, 0.96]) * random.uniform(105, 190)
        ground[verge] = [85, 115, 60] if grass else np.array([1.0, 0.95, 0.86]) * random.uniform(100, 170)
        grain = _noise(random, (HEIGHT, WIDTH), 24)[..., None] * random.uniform(2, 9)
        ground += grain + random.normal(0, random.uniform(2, 8), (HEIGHT, WIDTH, 1))
        patches = _noise(random, (64, 64), 5)
        ground += 12 * patches[(z.astype(np.int64) * 2) % 64, (np.abs(x) * 4).astype(np.int64) % 64][..., None]

        paint = random.uniform(185, 245)
        if random.random() < 0.8:  # dashes in the middle
            ground[road & (side < 0.09) & (z % 6 < 3)] = paint
        if random.random() < 0.5:  # lines at both edges
            line = road & (np.abs(side - self.road + 0.35) < 0.07)
            ground[line] = paint * np.array([1, 0.95, random.choice([0.35, 1])])
        if random.random() < 0.2:  # a crossing
            start = random.uniform(6, 20)
            ground[road & (z > start) & (z < start + 3) & (x % 1.2 < 0.6)] = paint
        if random.random() < 0.7:  # slabs
            ground[walk & ((z % 0.9 < 0.06) | (side % 0.9 < 0.05)) & (z < 18)] *= 0.82
        ground[(side >= self.road) & (side < self.road + 0.18)] *= random.uniform(0.75, 1.3)
        if random.random() < 0.6:  # shadow of a row of houses
            edge = random.uniform(0.3, 1.0) * self.road
            ground[x * random.choice([-1, 1]) > edge] *= random.uniform(0.5, 0.8)

        image[seen], depth[seen] = ground[seen] * self.light, distance[seen]
        label_map[seen & road], label_map[seen & walk] = ROAD, SIDEWALK
        label_map[seen & verge] = TREE if grass else SIDEWALK

    def _side(self, sign: int, rays: _Rays, image: np.ndarray, label_map: np.ndarray, depth: np.ndarray) -> None:
        """Houses, hedges and gaps along one side of the street."""
        random = self.random
        z, back = random.uniform(-8, 2), self.road + self.walk + random.choice([0.2, random.uniform(0.5, 9)])
        while z < 130:
            length, kind = random.uniform(5, 22), random.random()
            face = back + random.uniform(0, 1.5) * (random.random() < 0.4)
            tall = random.uniform(4, 14) if kind < 0.72 else random.uniform(1.0, 6.0)
            if kind < 0.9:
                label = BUILDING if kind < 0.72 else TREE
                self._box(_Row(sign, face, z, z + length, tall, label), rays, image, label_map, depth)
            z += length * random.choice([1.0, 1.0, 1.25])

    def _box(self, row: _Row, rays: _Rays, image: np.ndarray, label_map: np.ndarray, depth: np.ndarray) -> None:
        """A house or hedge: its face along the street, and the one towards the viewer, where nothing is nearer."""
        for towards_viewer in (False, True):
            if not towards_viewer:
                distance = (row.sign * row.back - self.shift) / np.where(np.abs(rays.right) < 1e-4, 1e-4, rays.right)
                along = distance * rays.ahead
                hit = (distance > 0) & (along > row.near) & (along < row.far)
            else:
                if row.near < 1:
                    continue
                distance = row.near / np.maximum(rays.ahead, 0.05)
                along = (distance * rays.right + self.shift) * row.sign
                hit = (along > row.back) & (along < row.back + 9)
            y = self.eye - distance * rays.down
            ragged = 0.35 * np.sin(along * 2.1) + 0.3 * np.sin(along * 5.3) if row.label == TREE else 0
            hit &= (y > 0) & (y < row.tall + ragged) & (distance < depth)
            if not hit.any():
                continue
            if row.label == TREE:
                colours = self._hedge(along[hit], y[hit])
            else:
                colours = self._wall(along[hit], y[hit], row.tall, towards_viewer)
            image[hit] = colours * self.light * (0.8 if towards_viewer else 1)
            label_map[hit], depth[hit] = row.label, distance[hit]

    def _hedge(self, along: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of the points of a hedge, by their place along it and their height, each (n,)."""
        random = self.random
        green = np.array([random.uniform(50, 95), random.uniform(75, 125), random.uniform(30, 60)])
        leaves = 20 * np.sin(along * 7)[:, None] * np.sin(y * 9)[:, None]
        return green + random.normal(0, 16, (len(along), 1)) + leaves

    def _wall(self, along: np.ndarray, y: np.ndarray, tall: float, towards_viewer: bool) -> np.ndarray:
        """Colours (n, 3) of the points of a house's wall: bricks, windows, a shop, a roof."""
        random = self.random
        plasters = [[165, 95, 75], [190, 170, 135], [215, 210, 200], [130, 125, 122], [200, 185, 160], [95, 90, 95]]
        plaster = np.array(plasters[random.integers(len(plasters))]) * random.uniform(0.75, 1.15)
        plaster = plaster * (0.85 if towards_viewer else 1)
        colours = np.repeat(plaster[None], len(along), 0) + random.normal(0, 5, (len(along), 1))
        if random.random() < 0.5:  # rows of bricks
            colours[y % 0.3 < 0.05] *= 0.88
        step_along, step_up = random.uniform(1.6, 3.4), random.uniform(2.4, 3.3)
        width, height = random.uniform(0.7, 1.5), random.uniform(1.0, 1.8)
        pane = (along % step_along < width) & ((y - 0.9) % step_up < height) & (y > 0.9) & (y < tall - 0.8)
        colours[pane] = random.choice([40, 60, 90, 150]) + random.normal(0, 14, (int(pane.sum()), 1))
        frame = (along % step_along < width + 0.12) & ((y - 0.8) % step_up < height + 0.2)
        colours[frame & (y > 0.8) & (y < tall - 0.7) & ~pane] = 215
        if random.random() < 0.45:  # shops
            colours[(y > 2.6) & (y < 3.2)] = random.uniform(30, 230, 3)
            colours[(y < 2.5) & (along % 3.0 < 2.5)] = random.uniform(35, 90)
        if random.random() < 0.5:  # a roof
            colours[y > tall - random.uniform(0.8, 2.0)] = np.array([110, 85, 75]) * random.uniform(0.6, 1.2)
        return colours

    def _end(self, rays: _Rays, image: np.ndarray, label_map: np.ndarray, depth: np.ndarray) -> None:
        """Houses or trees across the far end of the street."""
        random = self.random
        z = random.uniform(45, 140)
        distance = z / np.maximum(rays.ahead, 0.05)
        y = self.eye - distance * rays.down
        skyline = random.uniform(3, 11) + 1.5 * np.repeat(random.normal(size=WIDTH // 8), 8)[None, :]
        hit = (y > 0) & (y < skyline) & (distance < depth)
        label = BUILDING if random.random() < 0.5 else TREE
        colour = np.array([120, 110, 100] if label == BUILDING else [70, 95, 50]) * random.uniform(0.7, 1.4)
        clear = np.exp(-self.haze * distance)[..., None]
        lit = (colour + _noise(random, (HEIGHT, WIDTH), 30)[..., None] * 14) * self.light
        image[hit] = (lit * clear + self.horizon * (1 - clear))[hit]
        label_map[hit], depth[hit] = label, distance[hit]


class _Canvas:
    """Image and label map at twice the scene's size. What is drawn on one is drawn on the other.

    A label of None leaves the label map as it is.
    """

    def __init__(self, image: np.ndarray, label_map: np.ndarray):
        size = (2 * WIDTH, 2 * HEIGHT)
        self._image = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        self._map = Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST)
        self.pen, self.map_pen = ImageDraw.Draw(self._image), ImageDraw.Draw(self._map)

    def polygon(self, points: Sequence[_Point], colour: _Colour, label: int | None) -> None:
        self.pen.polygon(points, fill=colour)
        if label is not None:
            self.map_pen.polygon(points, fill=label)

    def ellipse(self, left: float, top: float, right: float, bottom: float, colour: _Colour, label: int) -> None:
        box = [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
        self.pen.ellipse(box, fill=colour)
        self.map_pen.ellipse(box, fill=label)

    def line(self, start: _Point, end: _Point, width: float, colour: _Colour, label: int | None) -> None:
        width = max(1, round(width))
        self.pen.line([start, end], fill=colour, width=width)
        if label is not None:
            self.map_pen.line([start, end], fill=label, width=width)

    def shrunk(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (192, 256, 3) float32 and the label map (192, 256) uint8, at the scene's size."""
        image = self._image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        return np.asarray(image).astype(np.float32), np.asarray(self._map)[::2, ::2].copy()


class _Things:
    """What stands on the street. Each method draws one thing at a place `x`, `z` of the ground."""

    def __init__(self, street: _Street, canvas: _Canvas):
        self.street, self.canvas, self.random = street, canvas, street.random
        self.project, self.scale, self.shade = street.project, street.scale, street.shade

    def draw(self) -> None:
        """Things at random places, from far to near."""
        random, road, walk = self.random, self.street.road, self.street.walk
        placed: list[tuple[float, Callable[[float, float], None], float]] = []
        for sign in (-1, 1):
            edge, out = sign * road, sign * (road + walk)
            for z in np.arange(random.uniform(3, 12), 90, random.uniform(12, 28)):
                if random.random() < 0.8:
                    placed.append((z, self.pole, edge + sign * random.uniform(0.2, 0.7)))
            for _ in range(random.poisson(1.8)):
                placed.append((random.uniform(6, 45), self.sign, edge + sign * random.uniform(0.2, walk)))
            for _ in range(random.poisson(2.2)):
                placed.append((random.uniform(5, 70), self.tree, out + sign * random.uniform(-0.7, 5)))
            for _ in range(random.poisson(2.5)):
                placed.append((random.uniform(4, 45), self.pedestrian, edge + sign * random.uniform(-0.3, walk)))
            if random.random() < 0.5:  # a row of parked cars
                z = random.uniform(5, 25)
                for _ in range(random.integers(1, 7)):
                    placed.append((z, self.car, edge - sign * random.uniform(0.9, 1.2)))
                    z += random.uniform(5, 8)
            if random.random() < 0.35:
                z = random.uniform(3, 20)
                for _ in range(random.integers(2, 9)):
                    placed.append((z, self.fence, out if random.random() < 0.7 else edge))
                    z += 3.0
        for _ in range(random.poisson(2.5)):
            placed.append((random.uniform(6, 70), self.car, random.choice([-1, 1]) * random.uniform(0.3, 0.75) * road))
        for _ in range(random.poisson(1.0)):
            placed.append(
                (random.uniform(4, 30), self.cyclist, random.choice([-1, 1]) * random.uniform(0.4, 0.95) * road)
            )
        random.random()  # no longer used, but without it all scenes would be others
        for z, thing, x in sorted(placed, key=lambda item: -item[0]):
            thing(x, z)

    def pole(self, x: float, z: float) -> None:
        """A pole, often with an arm over the road, sometimes with a traffic light."""
        random = self.random
        tall, grey = random.uniform(3.5, 8.5), self.shade([random.uniform(60, 150)] * 3, z)
        width = random.uniform(0.1, 0.22) * self.scale(z)
        foot, top = self.project(x, 0, z), self.project(x, tall, z)
        self.canvas.line(foot, top, width, grey, POLE)
        if random.random() < 0.6:
            end = self.project(x - np.sign(x) * random.uniform(0.8, 2.2), tall + random.uniform(0, 0.6), z)
            self.canvas.line(top, end, width * 0.7, grey, POLE)
        if random.random() < 0.25:
            self.traffic_light(x, random.uniform(2.4, 3.5), z)

    def traffic_light(self, x: float, y: float, z: float) -> None:
        (left, low), (right, high) = self.project(x - 0.17, y, z), self.project(x + 0.17, y + 0.9, z)
        box = [(left, low), (right, low), (right, high), (left, high)]
        self.canvas.polygon(box, self.shade([25, 25, 28], z), SIGN)
        lit = self.random.integers(3)
        colour = [(230, 40, 30), (240, 170, 30), (40, 210, 120)][lit]
        radius, v = (right - left) * 0.3, high + (low - high) * (0.2 + 0.3 * lit)
        u = (left + right) / 2
        self.canvas.ellipse(u - radius, v - radius, u + radius, v + radius, colour, SIGN)

    def sign(self, x: float, z: float) -> None:
        """A traffic sign on its pole: round, a triangle, or a board."""
        random = self.random
        y, half = random.uniform(1.7, 2.9), random.uniform(0.3, 0.55)
        foot, top = self.project(x, 0, z), self.project(x, y, z)
        self.canvas.line(foot, top, 0.07 * self.scale(z), self.shade([120] * 3, z), POLE)
        (left, low), (right, high) = self.project(x - half, y, z), self.project(x + half, y + 2 * half, z)
        colours = [(200, 30, 35), (30, 70, 170), (240, 240, 240), (235, 190, 40), (20, 110, 60)]
        colour = self.shade(colours[random.integers(5)], z, 1.1)
        inner = self.shade([235, 235, 235], z, 1.1)
        kind, rim = random.integers(3), 0.22
        if kind == 0:
            self.canvas.ellipse(left, high, right, low, colour, SIGN)
            across, up = rim * (right - left), rim * (low - high)
            self.canvas.ellipse(left + across, high + up, right - across, low - up, inner, SIGN)
        elif kind == 1:
            self.canvas.polygon([(left, low), (right, low), ((left + right) / 2, high)], colour, SIGN)
        else:
            self.canvas.polygon([(left, low), (right, low), (right, high), (left, high)], colour, SIGN)
            middle = (low + high) / 2
            width = int((low - high) * 0.2)
            self.canvas.line((left + 1, middle), (right - 1, middle), width, inner, None)

    def tree(self, x: float, z: float) -> None:
        """A tree: its trunk, and a crown of leaves or bare branches."""
        random, scale = self.random, self.scale(z)
        trunk, tall = random.uniform(1.2, 3.2), random.uniform(3.5, 9)
        brown = self.shade(np.array([80, 65, 50]) * random.uniform(0.6, 1.3), z)
        foot, fork = self.project(x, 0, z), self.project(x, trunk + 0.8, z)
        self.canvas.line(foot, fork, random.uniform(0.18, 0.4) * scale, brown, TREE)
        crown = tall - trunk
        if self.street.bare and random.random() < 0.75:
            self._branches(fork, crown * 0.4 * scale, 0.14 * scale, brown)
            return
        green = np.array([random.uniform(45, 110), random.uniform(80, 130), random.uniform(25, 60)])
        for _ in range(int(random.integers(25, 60))):
            angle, radius = random.uniform(0, 2 * np.pi), np.sqrt(random.random()) * crown / 2
            u = fork[0] + radius * np.cos(angle) * scale * 0.9
            v = fork[1] - (crown / 2 + radius * np.sin(angle)) * scale * 0.9
            leaf = random.uniform(0.12, 0.3) * crown * scale * 0.5
            colour = self.shade(green * random.uniform(0.55, 1.3), z)
            self.canvas.ellipse(u - leaf, v - leaf, u + leaf, v + leaf, colour, TREE)

    def _branches(self, fork: _Point, length: float, width: float, brown: _Colour) -> None:
        """Up to 70 forks of a bare tree, each into two branches that are shorter and thinner."""
        forks = [(fork, np.pi / 2, length, width)]
        for _ in range(70):
            if not forks:
                break
            (u, v), angle, length, width = forks.pop(0)
            if length < 2:
                continue
            for turn in self.random.normal(0, 0.55, 2):
                end = (u + length * np.cos(angle + turn), v - length * np.sin(angle + turn))
                self.canvas.line((u, v), end, width, brown, TREE)
                forks.append((end, angle + turn, length * self.random.uniform(0.6, 0.85), width * 0.65))

    def pedestrian(self, x: float, z: float, label: int = PEDESTRIAN, lift: float = 0.0) -> None:
        """A person on foot, or `lift` metres above the ground on a bicycle."""
        random = self.random
        tall = random.uniform(1.5, 1.9)
        u, v = self.project(x, lift, z)
        size = tall * self.scale(z)
        coat, legs = self.shade(random.uniform(15, 220, 3), z), self.shade(random.uniform(15, 110, 3), z)
        skin = self.shade([205, 160, 130], z)
        stride = random.uniform(0.02, 0.16) * size
        hip = (u, v - 0.5 * size)
        self.canvas.line(hip, (u - stride, v), 0.09 * size, legs, label)
        self.canvas.line(hip, (u + stride, v), 0.09 * size, legs, label)
        waist, shoulders = v - 0.47 * size, v - 0.83 * size
        torso = [
            (u - 0.1 * size, waist), (u + 0.1 * size, waist),
            (u + 0.13 * size, shoulders), (u - 0.13 * size, shoulders),
        ]  # fmt: skip
        self.canvas.polygon(torso, coat, label)
        swing = random.uniform(-0.1, 0.1) * size
        arm = v - 0.8 * size
        self.canvas.line((u - 0.12 * size, arm), (u - 0.14 * size + swing, waist), 0.05 * size, coat, label)
        self.canvas.line((u + 0.12 * size, arm), (u + 0.14 * size - swing, waist), 0.05 * size, coat, label)
        self.canvas.ellipse(u - 0.065 * size, v - size, u + 0.065 * size, v - 0.85 * size, skin, label)

    def cyclist(self, x: float, z: float) -> None:
        """A bicycle, from the side or from behind, with its rider. Both have one class."""
        scale = self.scale(z)
        u, v = self.project(x, 0, z)
        dark, apart = self.shade([35, 35, 40], z), self.random.choice([0.12, 0.5]) * scale
        radius = 0.34 * scale
        for side in (-1, 1):
            width = max(1, round(0.06 * scale))
            ratio = 0.3 if apart < 0.3 * scale else 1.0
            wheel = [u + side * apart - radius * ratio, v - 2 * radius, u + side * apart + radius * ratio, v]
            self.canvas.pen.ellipse(wheel, outline=dark, width=width)
            self.canvas.map_pen.ellipse(wheel, fill=BICYCLIST)
        self.canvas.line((u - apart, v - radius), (u + apart, v - 1.6 * radius), 0.07 * scale, dark, BICYCLIST)
        self.pedestrian(x, z, BICYCLIST, 0.45)

    def car(self, x: float, z: float) -> None:
        """A car or, sometimes, a van: its shadow, wheels, side, windows and the end towards the viewer."""
        random, scale = self.random, self.scale(z)
        paints = [
            [200, 200, 205], [30, 30, 35], [150, 25, 30], [35, 60, 120], [120, 125, 130], [225, 225, 220], [40, 80, 60],
            [190, 170, 60],
        ]  # fmt: skip
        paint = np.array(paints[random.integers(len(paints))]) * random.uniform(0.8, 1.15)
        half, length = random.uniform(0.8, 0.95), random.uniform(3.6, 4.8)
        body, roof = random.uniform(0.85, 1.05), random.uniform(1.35, 1.75)
        if random.random() < 0.12:
            half, length, body, roof = 1.0, 6.0, 1.2, random.uniform(2.2, 3.2)
        back = z + length
        ground = [self.project(u, 0, w) for u, w in ((x - half, z), (x + half, z), (x + half, back), (x - half, back))]
        self.canvas.polygon(ground, self.shade([25, 25, 28], z), None)  # the shadow is of the ground's class
        near = -1 if x - self.street.shift > 0 else 1  # the side that is seen

        def face(corners: Sequence[tuple[float, float, float]], colour: _Colour) -> None:
            self.canvas.polygon([self.project(*corner) for corner in corners], colour, CAR)

        def board(left: float, right: float, low: float, high: float, colour: _Colour) -> None:
            face([(left, low, z), (right, low, z), (right, high, z), (left, high, z)], colour)

        side = x + near * half
        for axle in (z + 0.18 * length, z + 0.8 * length):
            u, v = self.project(side, 0.32, axle)
            radius = 0.32 * 2 * self.street.focal / max(axle, 1)
            colour = self.shade([20, 20, 22], z)
            self.canvas.ellipse(u - radius * 0.5, v - radius, u + radius * 0.5, v + radius, colour, CAR)
        face([(side, 0.25, z), (side, 0.25, back), (side, body, back), (side, body, z)], self.shade(paint * 0.8, z))
        start, end, inner = z + 0.25 * length * (roof < 2), z + 0.8 * length, 0.85 * half
        low, high = x + near * inner, x + near * inner * 0.9
        windows = [(low, body, start), (low, body, end), (high, roof, end - 0.3), (high, roof, start + 0.3)]
        face(windows, self.shade([45, 52, 60], z))
        cabin = [
            (x - inner, body, start), (x + inner, body, start),
            (x + inner * 0.9, roof, start + 0.3), (x - inner * 0.9, roof, start + 0.3),
        ]  # fmt: skip
        face(cabin, self.shade(paint * 0.9, z))
        screen = [
            (x - inner * 0.85, body + 0.05, start), (x + inner * 0.85, body + 0.05, start),
            (x + inner * 0.75, roof - 0.1, start + 0.3), (x - inner * 0.75, roof - 0.1, start + 0.3),
        ]  # fmt: skip
        face(screen, self.shade([50, 58, 66], z))
        board(x - half, x + half, 0.25, body, self.shade(paint, z))
        board(x - half, x + half, 0.25, 0.42, self.shade([40, 40, 42], z))
        for k in (-1, 1):
            lamp = self.shade([(225, 30, 25), (245, 240, 210)][int(x < 0)], z, 1.1)
            board(x + k * half * 0.95, x + k * half * 0.65, 0.6, 0.8, lamp)
            u, v = self.project(x + k * half * 0.8, 0.0, z)
            left, right, top = u - 0.1 * scale, u + 0.1 * scale, v - 0.3 * scale
            tyre = [(left, v), (right, v), (right, top), (left, top)]
            self.canvas.polygon(tyre, self.shade([18, 18, 20], z), CAR)
        if random.random() < 0.6:  # number plate
            board(x - 0.26, x + 0.26, 0.48, 0.6, self.shade([230, 215, 120], z))

    def fence(self, x: float, z: float) -> None:
        """Three metres of a fence along the street. What shows between its bars has its class too."""
        tall, colour = 1.05, self.shade([60, 62, 64] if self.random.random() < 0.6 else [170, 160, 140], z)
        corners = [self.project(x, y, w) for y, w in ((0.1, z), (0.1, z + 3), (tall, z + 3), (tall, z))]
        self.canvas.map_pen.polygon(corners, fill=FENCE)
        width = max(1, round(0.05 * self.scale(z)))
        self.canvas.line(corners[3], corners[2], width + 1, colour, None)
        self.canvas.line(corners[0], corners[1], width, colour, None)
        for w in np.arange(z, z + 3, 0.22):
            self.canvas.line(self.project(x, 0.1, w), self.project(x, tall, w), width, colour, None)


def _as_photo(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What a camera makes of the pixels (192, 256, 3): tone curve, contrast, blur and noise, uint8."""
    pixels = 255 * np.clip(pixels / 255, 0, 1) ** random.uniform(0.8, 1.25)
    pixels = (pixels - 128) * random.uniform(0.85, 1.2) + 128 + random.normal(0, 6)
    blur = ImageFilter.GaussianBlur(random.uniform(0.2, 0.8))
    pixels = np.asarray(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(blur)).astype(np.float32)
    grey = random.normal(0, random.uniform(1, 5), (HEIGHT, WIDTH, 1))
    pixels = pixels + grey + random.normal(0, random.uniform(0.5, 3), (HEIGHT, WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _noise(random: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise about 0 of standard deviation 1, with `cells` cells along each side and finer ones: `shape`."""
    noise = np.zeros(shape)
    for octave in range(3):
        n = cells * 2**octave
        grid = Image.fromarray(random.normal(size=(n + 2, n + 2)).astype(np.float32))
        noise += np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)) / 1.6**octave
    return noise / max(noise.std(), 1e-6)
