"""Inference as one pure function of a few arrays, with the weights inside: what is exported.

Everything from uint8 pixels to boxes that non-maximum suppression has left is part of it. Two
kinds of pixels go in: images that were resized and padded before, as the loader makes them
(`on_canvas`), or frames of one fixed size, as a camera sends them (`on_frames`). As StableHLO it
is an artefact that JAX alone runs, on any kind of device:

    exported = export_stablehlo(on_frames(detector, variables, batch_size=1, height=480, width=640))
    Path("detector.jax").write_bytes(exported.serialize())  # needs flatbuffers

and where this package is not installed:

    detect = jax.export.deserialize(Path("detector.jax").read_bytes()).call
    found = detect(images)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.resize import FILL_COLOUR, network_size, resize_method
from harmonic_jax.structures import Batch, Detections, GroundTruth
from harmonic_jax.training.state import Detector, Variables
from harmonic_jax.training.step import predict

PLATFORMS = ("cpu", "cuda", "tpu")
BatchSize = int | Literal["any"]
SHORTEST_FRAME = 16
_ERROR = 2.0**-12  # in grey levels; what float32 makes of a mean is closer


@dataclasses.dataclass(frozen=True)
class InferenceFunction:
    """A function of arrays, and the shapes it takes.

    Attributes:
      call: returns a dictionary. `boxes` float32 [b, d, 4], xyxy in pixels of the image as it was
        before it was resized; `scores` float32 [b, d]; `labels` int32 [b, d]; `valid` bool [b, d],
        False where a row means nothing; of Mask R-CNN also `masks` float32 [b, d, s, s],
        probabilities on a grid over each box.
      inputs: its arguments by name, in their order.
    """

    call: Callable[..., dict[str, Array]]
    inputs: dict[str, jax.ShapeDtypeStruct]


def on_canvas(
    detector: Detector, variables: Variables, *, batch_size: BatchSize, bucket: tuple[int, int]
) -> InferenceFunction:
    """Inference on images that are resized and padded already.

    Its arguments are those of a batch (`structures.Batch`): `images` uint8 [b, h, w, 3], RGB,
    placed at the top left and padded; `image_size` float32 [b, 2], height and width of the part
    that is image; `scale` float32 [b, 2], its size over that of the original.

    Args:
      detector: the model and its config.
      variables: its arrays, `TrainState.for_evaluation` or a restored run's. Those of float16 are
        written as such, and computed with in float32.
      batch_size: images of a call; "any": as many as there are, one after another.
      bucket: height and width of the padded images, one of `DataConfig.buckets`.
    """
    buckets = detector.config.data.buckets
    if bucket not in buckets:
        raise ConfigError(f"bucket is {bucket}; it must be one of {buckets}, the config's")

    def call(
        images: UInt8[Array, "b h w 3"], image_size: Float[Array, "b 2"], scale: Float[Array, "b 2"]
    ) -> dict[str, Array]:
        return _detect(detector, variables, images, image_size, scale)

    pair = ((2,), jnp.float32)
    pixels = ((*bucket, 3), jnp.uint8)
    return _of_batches(call, batch_size, {"images": pixels, "image_size": pair, "scale": pair})


def on_frames(
    detector: Detector, variables: Variables, *, batch_size: BatchSize, height: int, width: int
) -> InferenceFunction:
    """Inference on frames of one size, resized and padded inside, as the loader would.

    Its only argument is `images`, uint8 [b, height, width, 3], RGB. OpenCV, which the loader
    resizes with, rounds its weights: a pixel may come out one grey level off its own.

    Args:
      detector, variables, batch_size: as for `on_canvas`.
      height: of a frame, in pixels, >= 16.
      width: of a frame.
    """
    config = detector.config.data
    if min(height, width) < SHORTEST_FRAME or height * width > config.max_pixels:
        raise ConfigError(
            f"the frame size is {height} x {width}; each side must be >= {SHORTEST_FRAME}, and "
            f"both together at most {config.max_pixels} pixels (data.max_pixels)"
        )
    bucket = config.bucket_of(height, width)
    size = network_size(height, width, config, bucket=bucket, short_side=config.short_sides[-1])
    by_row = resampling_weights((height, width), size, config, axis=0)
    by_column = resampling_weights((height, width), size, config, axis=1)

    def call(images: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        resized = resample(images, jnp.asarray(by_row), jnp.asarray(by_column))
        canvas = _pad(resized, bucket)
        image_size = jnp.tile(jnp.array([size], jnp.float32), (len(images), 1))
        scale = jnp.tile(jnp.array([[size[0] / height, size[1] / width]]), (len(images), 1))
        return _detect(detector, variables, canvas, image_size, scale)

    return _of_batches(call, batch_size, {"images": ((height, width, 3), jnp.uint8)})


def _of_batches(
    call: Callable[..., dict[str, Array]],
    batch_size: BatchSize,
    inputs: dict[str, tuple[tuple[int, ...], DTypeLike]],
) -> InferenceFunction:
    """A function of batches, from shapes and types of an image's inputs."""

    def of_each(*batch: Array) -> dict[str, Array]:
        def of_one(image: tuple[Array, ...]) -> dict[str, Array]:
            return jax.tree.map(lambda rows: rows[0], call(*(x[None] for x in image)))

        return jax.lax.map(of_one, batch)

    is_any = batch_size == "any"
    size = export.symbolic_shape("batch")[0] if is_any else batch_size
    shapes = {
        name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in inputs.items()
    }
    return InferenceFunction(of_each if is_any else call, shapes)


def export_stablehlo(
    function: InferenceFunction, *, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """The function compiled to StableHLO, the weights inside.

    Args:
      function: `on_canvas` or `on_frames`.
      platforms: kinds of devices that the artefact shall run on.
    """
    jitted = jax.jit(function.call)
    return export.export(jitted, platforms=tuple(platforms))(*function.inputs.values())


def resampling_weights(
    source: tuple[int, int], size: tuple[int, int], config: DataConfig, *, axis: int
) -> np.ndarray:
    """How much each source row (axis 0) or column (1) counts in each of the resized image.

    Resizing works along one axis after the other, and is linear: the weights of row i are what
    the loader's own resizing makes of an image that is black but for row i.

    Args:
      source: height and width of the images.
      size: those they are resized to.
      config: how they are resized.
      axis: 0 or 1.

    Returns:
      float32 [size[axis], source[axis]]; each row sums to 1.
    """
    method = resize_method(source, size, averages_areas=config.resizing != "torchvision")
    identity = np.eye(source[axis], dtype=np.float32)
    return cv2.resize(identity, (source[axis], size[axis]), interpolation=method)


def resample(
    images: UInt8[Array, "b h w 3"], by_row: Float[Array, "i h"], by_column: Float[Array, "j w"]
) -> UInt8[Array, "b i j 3"]:
    """Resized images: each pixel a weighted mean of source pixels, rounded to a grey level.

    Simple ratios of sizes make many means halfway between two levels. They go up, whichever side
    the rounding errors of a machine have moved them to.
    """
    exact = jax.lax.Precision.HIGHEST  # a rounding error of bfloat16 is a grey level
    pixels = images.astype(jnp.float32)
    rows = jnp.einsum("ih,bhwc->biwc", by_row, pixels, precision=exact)
    resized = jnp.einsum("jw,biwc->bijc", by_column, rows, precision=exact)
    return jnp.clip(jnp.floor(resized + (0.5 + _ERROR)), 0, 255).astype(jnp.uint8)


def _pad(images: Array, bucket: tuple[int, int]) -> Array:
    """The images at the top left of the mean colour."""
    batch, height, width, _ = images.shape
    colour = jnp.array(FILL_COLOUR, jnp.uint8)
    right = jnp.broadcast_to(colour, (batch, height, bucket[1] - width, 3))
    below = jnp.broadcast_to(colour, (batch, bucket[0] - height, bucket[1], 3))
    return jnp.concatenate([jnp.concatenate([images, right], axis=2), below], axis=1)


def _detect(
    detector: Detector, variables: Variables, images: Array, image_size: Array, scale: Array
) -> dict[str, Array]:
    """The detections in a batch of real images, by the names of their arrays."""
    size = images.shape[0]
    variables = jax.tree.map(
        lambda x: jnp.asarray(x).astype(jnp.float32) if x.dtype == jnp.float16 else x, variables
    )
    batch = Batch(
        images=images,
        image_size=image_size,
        scale=scale,
        record_index=jnp.arange(size),
        is_real=jnp.ones(size, bool),
        ground_truth=GroundTruth(  # inference does not look at it
            boxes=jnp.zeros((size, 1, 4)),
            labels=jnp.zeros((size, 1), jnp.int32),
            valid=jnp.zeros((size, 1), bool),
        ),
    )
    found: Detections = predict(detector, variables, batch)
    arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {name: array for name, array in arrays.items() if array is not None}
