"""Renders one scene: items on a background, with the exact visible mask of each.

Everything is a pure function of the items, a generator and the options.
"""

import dataclasses

import cv2
import numpy as np

from harmonic_jax.data.scenes.items import (
    ItemPool,
    Sprite,
    draw_sprite,
    mask_box,
    paste,
    scrap_of,
    tint,
)
from harmonic_jax.data.scenes.options import SceneOptions

_OCTAVES = (3, 6, 12, 24, 48)  # cells along a side, coarsest first


@dataclasses.dataclass(frozen=True)
class Scene:
    """A rendered image and its objects, back to front.

    Attributes:
      image: uint8 [h, w, 3], RGB.
      label_map: uint8 [h, w], 0 where no object shows, k + 1 where object k does.
      labels: int32 [n], index in CLASS_NAMES.
      boxes: int32 [n, 4], xyxy in pixels, tight on the visible pixels, x2 and y2 exclusive.
      areas: int32 [n], number of visible pixels.
      visibility: float32 [n], visible pixels divided by those of the complete object, including
        what lies beyond the border.
    """

    image: np.ndarray
    label_map: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    visibility: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """Visible pixels of each object, bool [n, h, w]."""
        ids = np.arange(1, len(self.labels) + 1, dtype=np.uint8)
        return self.label_map[None] == ids[:, None, None]


@dataclasses.dataclass
class _Draft:
    """A scene in the making."""

    image: np.ndarray
    label_map: np.ndarray
    labels: list[int] = dataclasses.field(default_factory=list)
    full_areas: list[int] = dataclasses.field(default_factory=list)
    discs: list[tuple[np.ndarray, float]] = dataclasses.field(default_factory=list)


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of scene `index`: independent of all others, so any scene can be made alone."""
    return np.random.default_rng([seed, index])


def render_scene(
    pool: ItemPool, rng: np.random.Generator, options: SceneOptions | None = None
) -> Scene:
    """Renders one scene.

    Objects are pasted back to front. A place where some object, this one or an earlier one, would
    show less than `options.min_visible` of itself is refused and drawn again.

    Args:
      pool: the items to paste.
      rng: all randomness; its state alone decides the scene.
      options: the difficulty; None is `SceneOptions()`.

    Returns:
      The scene; it has at most `options.num_objects[1]` objects.

    Example:
      >>> from harmonic_jax.data.scenes import load_items, render_scene, scene_rng
      >>> scene = render_scene(load_items("train"), scene_rng(0, 7))
      >>> scene.image.shape, scene.boxes.shape == (len(scene.labels), 4)
      ((128, 128, 3), True)
    """
    options = options or SceneOptions()
    image = _background(rng, options)
    draft = _Draft(image, np.zeros(image.shape[:2], np.uint8))
    for _ in range(_draw_count(rng, options.num_scraps)):
        scrap = scrap_of(pool, pool.draw(rng), rng)
        paste(image, scrap, rng.integers(0, options.size, 2), tint(rng, scrap, None, 0.0))
    for _ in range(_draw_count(rng, options.num_objects)):
        _add_object(draft, pool, rng, options)
    for _ in range(_draw_count(rng, options.num_bars)):
        _add_bar(draft, rng, options)
    return _finish(draft, _photograph(draft.image, rng, options))


def _draw_count(rng: np.random.Generator, least_most: tuple[int, int]) -> int:
    return int(rng.integers(least_most[0], least_most[1] + 1))


def _add_object(
    draft: _Draft, pool: ItemPool, rng: np.random.Generator, options: SceneOptions
) -> None:
    item = pool.draw(rng)
    for _ in range(options.max_tries):
        sprite = draw_sprite(pool, item, rng, options)
        centre = _draw_centre(draft, sprite, rng, options)
        label_map = draft.label_map.copy()
        full_areas = [*draft.full_areas, sprite.area]
        window, cut = sprite.window(centre, options.size)
        label_map[window][sprite.opacity[cut] >= 0.5] = len(full_areas)
        if not _is_legal(label_map, full_areas, options):
            continue
        below = draft.image[window].reshape(-1, 3).mean(axis=0)
        paste(draft.image, sprite, centre, tint(rng, sprite, below, options.min_contrast))
        draft.label_map, draft.full_areas = label_map, full_areas
        draft.labels.append(int(pool.labels[item]))
        draft.discs.append((centre, sprite.length))
        return


def _draw_centre(
    draft: _Draft, sprite: Sprite, rng: np.random.Generator, options: SceneOptions
) -> np.ndarray:
    """Anywhere, or at a distance of an earlier object at which the two touch or overlap."""
    margin = 0.35 * sprite.length  # at most some 15 % of its length past a border
    if draft.discs and rng.random() < options.adjacency:
        other, other_length = draft.discs[int(rng.integers(len(draft.discs)))]
        angle = rng.uniform(0.0, 2.0 * np.pi)
        distance = rng.uniform(0.4, 0.9) * (sprite.length + other_length) / 2
        centre = other + distance * np.array([np.cos(angle), np.sin(angle)])
    else:
        centre = rng.uniform(margin, options.size - margin, 2)
    return np.clip(centre, margin, options.size - margin).round().astype(np.int64)


def _add_bar(draft: _Draft, rng: np.random.Generator, options: SceneOptions) -> None:
    """Draws a straight bar across everything, unless it would hide an object."""
    ends = rng.integers(0, options.size, (2, 2)).tolist()
    thickness = int(rng.integers(2, max(3, options.size // 18)))
    colour = _random_colour(rng)
    label_map = draft.label_map.copy()
    cv2.line(label_map, ends[0], ends[1], 0, thickness)
    if _is_legal(label_map, draft.full_areas, options):
        draft.label_map = label_map
        cv2.line(draft.image, ends[0], ends[1], colour, thickness)


def _is_legal(label_map: np.ndarray, full_areas: list[int], options: SceneOptions) -> bool:
    """Whether every object still shows enough of itself."""
    areas = np.bincount(label_map.ravel(), minlength=len(full_areas) + 1)[1:]
    if np.any(areas < options.min_visible * np.asarray(full_areas)):
        return False
    boxes = _tight_boxes(label_map, len(full_areas))
    return bool(np.all(boxes[:, 2:] - boxes[:, :2] >= options.min_side))


def _tight_boxes(label_map: np.ndarray, num_objects: int) -> np.ndarray:
    boxes = [mask_box(label_map == k + 1) for k in range(num_objects)]
    return np.array(boxes, np.int32).reshape(-1, 4)


def _photograph(image: np.ndarray, rng: np.random.Generator, options: SceneOptions) -> np.ndarray:
    """Exposure, blur and sensor noise."""
    sigma = rng.uniform(0.0, options.max_blur)
    if sigma > 0.2:  # less changes nothing, and OpenCV refuses 0
        image = cv2.GaussianBlur(image, (5, 5), sigma)
    gain = np.float32(rng.uniform(0.8, 1.15)) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    noise = rng.standard_normal((*image.shape[:2], 1), np.float32)  # of the luminance
    return _to_uint8(image * gain + noise * np.float32(rng.uniform(0.0, options.max_noise)))


def _finish(draft: _Draft, image: np.ndarray) -> Scene:
    num_objects = len(draft.labels)
    areas = np.bincount(draft.label_map.ravel(), minlength=num_objects + 1)[1:]
    full = np.asarray(draft.full_areas, np.float32)
    return Scene(
        image=image,
        label_map=draft.label_map,
        labels=np.asarray(draft.labels, np.int32),
        boxes=_tight_boxes(draft.label_map, num_objects),
        areas=areas.astype(np.int32),
        visibility=areas.astype(np.float32) / full,
    )


# Procedural backgrounds: nothing on them is an object, and much of it looks like one.


def _background(rng: np.random.Generator, options: SceneOptions) -> np.ndarray:
    """A background of gradient, noise, pattern and shapes: uint8 [size, size, 3], RGB."""
    canvas = _gradient(rng, options.size)
    _add_octaves(canvas, rng)
    if rng.random() < 0.5:
        _add_pattern(canvas, rng)
    image = _to_uint8(canvas)
    for _ in range(_draw_count(rng, options.num_shapes)):
        _draw_shape(image, rng)
    return image


def _random_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Any RGB colour, as OpenCV takes it."""
    red, green, blue = rng.uniform(0.0, 255.0, 3).tolist()
    return red, green, blue


def _to_uint8(canvas: np.ndarray) -> np.ndarray:
    """Rounds and clips a float image to uint8."""
    return cv2.convertScaleAbs(np.maximum(canvas, 0.0))


def _coordinate(rng: np.random.Generator, size: int) -> np.ndarray:
    """Distance along a random direction, in image sides from the centre: float32 [size, size]."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    axis = np.arange(size, dtype=np.float32) / size - 0.5
    return np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    start, end = rng.uniform(0.0, 255.0, (2, 3)).astype(np.float32)
    end = start + (end - start) * np.float32(rng.uniform(0.0, 0.8))
    return start + (end - start) * (_coordinate(rng, size)[..., None] + np.float32(0.5))


def _add_octaves(canvas: np.ndarray, rng: np.random.Generator) -> None:
    size = canvas.shape[0]
    amplitude = rng.uniform(5.0, 35.0)
    persistence = rng.uniform(0.5, 1.0)
    for cells in _OCTAVES:
        noise = rng.normal(0.0, amplitude, (cells, cells, 1 if rng.random() < 0.5 else 3))
        noise = cv2.resize(noise.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        canvas += noise if noise.ndim == 3 else noise[..., None]
        amplitude *= persistence


def _add_pattern(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Blends in stripes or checks, sharp or soft."""
    size = canvas.shape[0]
    wave = np.sin(_coordinate(rng, size) * np.float32(2.0 * np.pi * rng.uniform(2.0, 16.0)))
    if rng.random() < 0.4:
        wave *= np.sin(_coordinate(rng, size) * np.float32(2.0 * np.pi * rng.uniform(2.0, 16.0)))
    if rng.random() < 0.5:
        wave = (wave > rng.uniform(-0.5, 0.5)).astype(np.float32)
    else:
        wave = 0.5 + 0.5 * wave
    weight = (wave * np.float32(rng.uniform(0.1, 0.7)))[..., None]
    canvas += weight * (np.asarray(_random_colour(rng), np.float32) - canvas)


def _draw_shape(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a line, an ellipse or a polygon, each filled or only outlined."""
    size = image.shape[0]
    colour = _random_colour(rng)
    centre = rng.integers(0, size, 2)
    thickness = cv2.FILLED if rng.random() < 0.5 else int(rng.integers(1, 4))
    kind = rng.integers(3)
    if kind == 0:
        end = rng.integers(0, size, 2)
        cv2.line(image, centre.tolist(), end.tolist(), colour, abs(thickness), cv2.LINE_AA)
    elif kind == 1:
        axes = rng.integers(3, size // 4, 2)
        turn = rng.uniform(0.0, 180.0)
        cv2.ellipse(
            image, centre.tolist(), axes.tolist(), turn, 0, 360, colour, thickness, cv2.LINE_AA
        )
    else:
        corners = centre + rng.integers(-size // 4, size // 4, (int(rng.integers(3, 6)), 2))
        if thickness == cv2.FILLED:
            cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        else:
            cv2.polylines(image, [corners.astype(np.int32)], True, colour, thickness, cv2.LINE_AA)
