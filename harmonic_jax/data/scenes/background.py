"""Procedural backgrounds: nothing on them is an object, and much of it looks like one."""

import cv2
import numpy as np

from harmonic_jax.data.scenes.options import SceneOptions

_OCTAVES = (3, 6, 12, 24, 48)  # cells along a side, coarsest first


def render_background(rng: np.random.Generator, options: SceneOptions) -> np.ndarray:
    """A background of gradient, noise, pattern and shapes: uint8 [size, size, 3], RGB."""
    canvas = _gradient(rng, options.size)
    _add_octaves(canvas, rng)
    if rng.random() < 0.5:
        _add_pattern(canvas, rng)
    image = to_uint8(canvas)
    low, high = options.num_shapes
    for _ in range(int(rng.integers(low, high + 1))):
        _draw_shape(image, rng)
    return image


def random_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Any RGB colour, as OpenCV takes it."""
    red, green, blue = rng.uniform(0.0, 255.0, 3).tolist()
    return red, green, blue


def to_uint8(canvas: np.ndarray) -> np.ndarray:
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
    canvas += weight * (np.asarray(random_colour(rng), np.float32) - canvas)


def _draw_shape(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a line, an ellipse or a polygon, each filled or only outlined."""
    size = image.shape[0]
    colour = random_colour(rng)
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
