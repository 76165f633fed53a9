"""Synthetic scenes of coloured, patterned shapes over clutter, on which `tiny` is pretrained and demonstrated.

A scene depends on nothing but its seed: a data set is a range of seeds, and every training step can be drawn again.
"""

import colorsys
import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "crescent",
    "arrow",
    "flower",
    "bolt",
)
# name -> hue in degrees, saturation, value; white and black have no saturation, so only their value varies
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.90, 0.85),
    "orange": (28, 0.95, 0.95),
    "yellow": (56, 0.90, 0.95),
    "green": (125, 0.75, 0.65),
    "blue": (218, 0.85, 0.85),
    "purple": (282, 0.70, 0.70),
    "white": (0, 0.0, 0.97),
    "black": (0, 0.0, 0.07),
}
PATTERNS = ("plain", "striped", "dotted", "checked")  # "plain" is never part of a name
HELD_OUT_COUNT = 16  # of 96 combinations of colour and shape; the other 80 are the names in prompts/tiny.txt
# Combinations in no image and no text of the pretraining, spread evenly over colours and shapes.
HELD_OUT = tuple((list(COLOURS)[k % 8], SHAPES[(5 * k) % 12]) for k in range(HELD_OUT_COUNT))
TRAINED = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)
SUPERSAMPLING = 3  # masks are drawn this many times larger and averaged down, for soft edges
HUE_JITTER = 7.0  # degrees; far less than half the distance of the closest hues (red and orange: 28)
MIN_VISIBLE = 0.6  # an object is placed only where every object still shows this share of its area
PLACING_TRIES = 25


@dataclass(frozen=True)
class Layer:
    """One shape of an object.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        pattern: One of `PATTERNS`.
        scale: Size, as a share of the object's unit disc.
        offset_xy: Centre in the object's unit disc, x right, y down.
    """

    shape: str
    colour: str
    pattern: str = "plain"
    scale: float = 1.0
    offset_xy: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Look:
    """The look of an object. `Look.of` makes the usual one with a single layer.

    Attributes:
        layers: Its shapes, from back to front.
    """

    layers: tuple[Layer, ...]

    @staticmethod
    def of(colour: str, shape: str, pattern: str = "plain") -> "Look":
        """A single shape that fills the unit disc."""
        return Look((Layer(shape, colour, pattern),))


@dataclass(frozen=True)
class Style:
    """The parameters of a kind of picture. A value is drawn uniformly from each range, once per image.

    Attributes:
        size_px: Width and height.
        objects: The number of objects.
        object_px: Diameter of an object's unit disc; drawn log-uniformly.
        light: Gain on the finished picture.
        cast: Largest deviation of a colour channel's gain.
        clutter: The number of lines and blobs that belong to no class.
        noise: Standard deviation of the pixel noise, on the scale 0..255.
        blur_px: Radius of the blur.
        outline: Share of the images whose objects have a dark outline.
        backdrop: "clouds", or "bench" for the boards of a workbench as in the sample set.
    """

    size_px: int = 256
    objects: tuple[int, int] = (3, 8)
    object_px: tuple[float, float] = (26.0, 110.0)
    light: tuple[float, float] = (0.70, 1.20)
    cast: float = 0.06
    clutter: tuple[int, int] = (4, 22)
    noise: tuple[float, float] = (0.0, 8.0)
    blur_px: tuple[float, float] = (0.0, 0.8)
    outline: float = 0.35
    backdrop: str = "clouds"


PRETRAINING = Style()


@dataclass
class Scene:
    """A drawn picture and its objects.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        boxes_xyxy: (n, 4) float32 in pixels, tight around the whole object, including parts that others cover.
        looks: The n looks, in the order of the boxes.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    looks: list[Look] = field(default_factory=list)


def draw_scene(looks: list[Look], rng: np.random.Generator, style: Style = PRETRAINING) -> Scene:
    """Draws looks at random places, sizes and angles. A look that finds no free place is left out.

    Args:
        looks: What to draw.
        rng: The only source of randomness.
        style: The kind of picture.

    Returns:
        The scene, with boxes and looks of the objects that were placed.
    """
    size = style.size_px
    canvas = _backdrop(rng, style)
    owner = np.full((size, size), -1, np.int16)  # the object that each pixel shows
    areas: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    placed: list[Look] = []
    outline = rng.random() < style.outline
    for look in looks:
        for _ in range(PLACING_TRIES):
            low, high = np.log(style.object_px)
            diameter = float(np.exp(rng.uniform(low, high)))
            rgb, alpha = _render(look, diameter, rng, outline)
            height, width = alpha.shape
            if width >= size or height >= size:
                continue
            x, y = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
            solid = alpha > 0.5
            view = owner[y : y + height, x : x + width]
            covered = np.bincount(view[solid & (view >= 0)], minlength=len(areas))
            visible = [(owner == k).sum() - covered[k] for k in np.flatnonzero(covered)]
            if any(v < MIN_VISIBLE * areas[k] for v, k in zip(visible, np.flatnonzero(covered), strict=True)):
                continue
            view[solid] = len(areas)
            part = canvas[y : y + height, x : x + width]
            part += (rgb - part) * alpha[..., None]
            areas.append(int(solid.sum()))
            ys, xs = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            boxes.append((x + xs[0], y + ys[0], x + xs[-1] + 1, y + ys[-1] + 1))
            placed.append(look)
            break
    return Scene(_finish(canvas, rng, style), np.array(boxes, np.float32).reshape(-1, 4), placed)


def random_look(rng: np.random.Generator, combinations: tuple[tuple[str, str], ...] = TRAINED) -> Look:
    """Draws a single shape of one of the given (colour, shape) combinations, in a random pattern."""
    colour, shape = combinations[rng.integers(len(combinations))]
    return Look.of(colour, shape, PATTERNS[rng.integers(len(PATTERNS))])


def names_of(look: Look) -> list[str]:
    """All names of a look with one layer: the shape, with its colour, its pattern, or both in front.

    For example "circle", "red circle", "striped circle", "red striped circle"; the pattern "plain" is never named.
    """
    layer = look.layers[0]
    names = [layer.shape, f"{layer.colour} {layer.shape}"]
    if layer.pattern != "plain":
        names += [f"{layer.pattern} {layer.shape}", f"{layer.colour} {layer.pattern} {layer.shape}"]
    return names


def _polygon(shape: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The outline (n, 2) of a shape in the unit disc, x right, y down, and that of its hole, if it has one."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    disc = np.stack([np.cos(turn), np.sin(turn)], 1)  # (48, 2)
    if shape == "circle":
        return disc, None
    if shape == "ring":
        return disc, 0.55 * disc
    if shape == "square":
        return 0.78 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float), None
    if shape == "triangle":
        return np.array([(0, -1), (0.87, 0.6), (-0.87, 0.6)]), None
    if shape == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        angle = np.arange(10) * math.pi / 5 - math.pi / 2
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), None
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x, y], 1) / 17.5, None
    if shape == "cross":
        a, b = 0.32, 0.95
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.array(half + [(-x, -y) for x, y in half]), None
    if shape == "diamond":
        return np.array([(0, -1), (0.52, 0), (0, 1), (-0.52, 0)]), None
    if shape == "crescent":
        outer = np.linspace(0.30 * math.pi, 1.70 * math.pi, 36)
        inner = np.linspace(1.63 * math.pi, 0.37 * math.pi, 30)
        back = np.stack([0.5 + 0.72 * np.cos(inner) * 1.05, 0.9 * np.sin(inner) * 0.92], 1)
        return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), back]), None
    if shape == "arrow":
        return np.array(
            [(0, -1), (0.75, -0.1), (0.3, -0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.1), (-0.75, -0.1)]
        ), None
    if shape == "flower":
        fine = np.linspace(0, 2 * math.pi, 90, endpoint=False)
        radius = 0.68 + 0.32 * np.cos(5 * fine)
        return radius[:, None] * np.stack([np.cos(fine), np.sin(fine)], 1), None
    if shape == "bolt":
        return np.array([(0.25, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1), (0.6, -0.25), (0.08, -0.25)]), None
    raise ValueError(f"Unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}.")


def _colour(name: str, rng: np.random.Generator) -> np.ndarray:
    """A named colour with jitter: (3,) RGB in 0..255."""
    hue, saturation, value = COLOURS[name]
    hue = (hue + rng.uniform(-HUE_JITTER, HUE_JITTER)) / 360 % 1
    value = float(np.clip(value + rng.uniform(-0.05, 0.05), 0.02, 1.0))
    saturation = saturation * rng.uniform(0.88, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _render(look: Look, diameter: float, rng: np.random.Generator, outline: bool) -> tuple[np.ndarray, np.ndarray]:
    """Renders one object: RGB (side, side, 3) in 0..255 and coverage (side, side) in 0..1."""
    side = math.ceil(diameter) + 3
    centre, radius = side / 2, diameter / 2
    angle = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    grid_y, grid_x = np.mgrid[0:side, 0:side] + 0.5
    local = np.stack([grid_x - centre, grid_y - centre], -1) / radius @ rotation  # (side, side, 2), unit disc
    rgb, alpha = np.zeros((side, side, 3)), np.zeros((side, side))
    for layer in look.layers:
        mask = _mask(layer, side, centre, radius, rotation)
        shade = _pattern(layer, local, rng)
        if outline:
            inner = _mask(layer, side, centre, radius, rotation, shrink=0.86)
            shade = shade * (0.35 + 0.65 * inner[..., None])
        rgb = rgb * (1 - mask[..., None]) + shade * mask[..., None]
        alpha = np.maximum(alpha, mask)
    slope = rng.uniform(0, 0.18)
    rgb = rgb * (1 + slope * (local[..., :1] * math.cos(angle * 3) + local[..., 1:] * math.sin(angle * 3)))
    return rgb, alpha


def _mask(
    layer: Layer, side: int, centre: float, radius: float, rotation: np.ndarray, shrink: float = 1.0
) -> np.ndarray:
    """The coverage of one layer: (side, side) in 0..1."""
    picture = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    pen = ImageDraw.Draw(picture)
    outline, hole = _polygon(layer.shape)
    for points, value in ((outline * shrink, 255), (None if hole is None else hole / shrink, 0)):
        if points is not None:
            at = (points * layer.scale + layer.offset_xy) @ rotation.T * radius + centre
            pen.polygon([(float(x), float(y)) for x, y in at * SUPERSAMPLING], fill=value)
    return np.asarray(picture.reduce(SUPERSAMPLING), np.float64) / 255


def _pattern(layer: Layer, local: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The RGB (side, side, 3) of a layer: its colour, and a second shade of it where the pattern is."""
    colour = _colour(layer.colour, rng)
    second = colour * 0.42 if colour.mean() > 60 else colour + 95  # darker, or lighter if the colour is dark
    u, v = local[..., 0] - layer.offset_xy[0], local[..., 1] - layer.offset_xy[1]
    frequency = rng.uniform(2.8, 4.0) / layer.scale
    phase = rng.uniform(0, 2 * math.pi)
    if layer.pattern == "striped":
        where = np.sin(u * frequency * math.pi + phase) > 0
    elif layer.pattern == "dotted":
        where = np.cos(u * frequency * math.pi * 0.9 + phase) + np.cos(v * frequency * math.pi * 0.9 + phase) > 0.75
    elif layer.pattern == "checked":
        where = np.sin(u * frequency * math.pi * 0.8 + phase) * np.sin(v * frequency * math.pi * 0.8 + phase) > 0
    else:
        where = np.zeros(u.shape, bool)
    return np.where(where[..., None], second, colour)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A random colour that fits no name, with low saturation and medium value: (3,) RGB in 0..255."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.28), rng.uniform(0.28, 0.72)))


def _backdrop(rng: np.random.Generator, style: Style) -> np.ndarray:
    """Clouds or the boards of a bench, with clutter on top: (size, size, 3) float32 in 0..255."""
    size = style.size_px
    if style.backdrop == "bench":
        picture = _bench(rng, size)
    else:
        cells = int(rng.integers(2, 7))
        colours = np.stack([_muted(rng) for _ in range(cells * cells)]).reshape(cells, cells, 3)  # (cells, cells, 3)
        picture = Image.fromarray(colours.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(style.clutter[0], style.clutter[1] + 1))):
        fill = tuple(int(c) for c in _muted(rng))
        x, y = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            reach = rng.uniform(-0.5, 0.5, 2) * size
            pen.line([(x, y), (x + reach[0], y + reach[1])], fill=fill, width=int(rng.integers(1, 6)))
        else:
            corners = int(rng.integers(5, 10))
            angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
            radii = rng.uniform(0.3, 1.0, corners) * rng.uniform(6, 45)
            pen.polygon(
                [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=fill
            )
    return np.array(picture, np.float32)


def _bench(rng: np.random.Generator, size: int) -> Image.Image:
    """The boards of a workbench: bands of a muted brown, with grain along them."""
    base = 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(0.05, 0.11), rng.uniform(0.12, 0.3), rng.uniform(0.4, 0.68)))
    boards = int(rng.integers(3, 7))
    tone = rng.uniform(0.85, 1.12, boards)[(np.arange(size) * boards // size)]  # (size,)
    grain = rng.normal(0, 0.03, (size, 1)) + rng.normal(0, 0.015, (size, size // 8)).repeat(8, 1)[:, :size]
    picture = base * (tone[:, None, None] + grain[..., None])  # (size, size, 3)
    picture = picture if rng.random() < 0.5 else picture.transpose(1, 0, 2)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _finish(canvas: np.ndarray, rng: np.random.Generator, style: Style) -> np.ndarray:
    """Adds light, colour cast, blur and noise; returns uint8."""
    gain = rng.uniform(*style.light) * (1 + rng.uniform(-style.cast, style.cast, 3))
    picture = Image.fromarray(np.clip(canvas * gain.astype(np.float32), 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(*style.blur_px)))
    noise = rng.standard_normal((*canvas.shape[:2], 1), np.float32) * rng.uniform(*style.noise)
    return np.clip(np.asarray(picture, np.float32) + noise.astype(np.float32), 0, 255).astype(np.uint8)
