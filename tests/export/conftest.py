"""Detectors of every family that nobody trained, with scores of all sizes, and what one finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import Config
from harmonic_jax.export.program import resample, resampling_weights
from harmonic_jax.training.saved_run import SavedRun, abstract_variables
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import build_detector
from harmonic_jax.training.step import make_predict_step
from tests.detectors.tiny import MODELS
from tests.training.tiny import random_batch, tiny_config

CLASSES = ("sock", "shoe", "hat")


def drawn(name: str) -> SavedRun:
    """Of few detections: the more there are, the more have scores that rounding may swap."""
    model = MODELS[name]
    few = dataclasses.replace(model.postprocess, max_detections=20, score_threshold=0.0)
    config: Config = dataclasses.replace(
        tiny_config(), model=dataclasses.replace(model, postprocess=few)
    )
    detector = build_detector(config, len(CLASSES))
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_factor = any(word in jax.tree_util.keystr(path) for word in ("scale", "var"))
        if len(leaf.shape) > 1:
            values = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        elif is_factor:
            values = rng.uniform(0.5, 1, leaf.shape)
        else:
            values = rng.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    shapes = abstract_variables(detector, sharding=replicated(data_mesh(jax.devices()[:1])))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return SavedRun(config, CLASSES, detector, variables, 7, {})


@dataclasses.dataclass(frozen=True)
class FrameCase:
    """A run, frames of another size than the network's, and what its predict step finds in them
    where they are resized before."""

    run: SavedRun
    frames: np.ndarray
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def frame_case() -> FrameCase:
    run = drawn("retinanet")
    data = run.config.data
    assert data.bucket_of(128, 96) == (64, 64)  # so frames are halved, to 64 x 48
    frames = np.random.default_rng(1).integers(0, 256, (2, 128, 96, 3)).astype(np.uint8)
    images = np.full((2, 64, 64, 3), (124, 116, 104), np.uint8)
    weights = [resampling_weights((128, 96), (64, 48), data, axis=axis) for axis in (0, 1)]
    images[:, :, :48] = resample(frames, *weights)
    batch = dataclasses.replace(
        random_batch(0, size=2),
        images=images,
        image_size=np.full((2, 2), (64, 48), np.float32),
        scale=np.full((2, 2), 0.5, np.float32),
    )
    mesh = data_mesh(jax.devices()[:1])
    found, _ = make_predict_step(run.detector, mesh)(run.variables, put_batch(batch, mesh))
    names = ("boxes", "scores", "labels", "valid")
    expected = {name: np.asarray(getattr(found, name)) for name in names}
    assert expected["valid"].sum() >= 10
    assert expected["boxes"][..., 3].max() > 64  # in pixels of the frame, not the network's
    return FrameCase(run, frames, expected)
