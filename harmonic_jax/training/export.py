"""The inference function as one artefact that JAX alone runs, on any kind of device.

    exported = export_predict(detector, variables, batch_size=1, bucket=(800, 1344))
    Path("detector.jax").write_bytes(exported.serialize())  # needs flatbuffers

and where this package is not installed:

    predict = jax.export.deserialize(Path("detector.jax").read_bytes()).call
    found = predict(images, image_size, scale)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from harmonic_jax.structures import Batch, GroundTruth
from harmonic_jax.training.state import Detector, Variables
from harmonic_jax.training.step import predict

PLATFORMS = ("cpu", "cuda", "tpu")


def export_predict(
    detector: Detector,
    variables: Variables,
    *,
    batch_size: int,
    bucket: tuple[int, int],
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """The inference function for one shape, with the variables inside.

    Its arguments are those of a batch (`structures.Batch`): `images` uint8 [b, h, w, 3], RGB,
    placed at the top left and padded; `image_size` float32 [b, 2], height and width of the part
    that is image; `scale` float32 [b, 2], its size over that of the original. It returns a
    dictionary: `boxes` float32 [b, d, 4], xyxy in pixels of the original image; `scores` float32
    [b, d]; `labels` int32 [b, d]; `valid` bool [b, d], False where a row means nothing; of Mask
    R-CNN also `masks` float32 [b, d, s, s].

    Args:
      detector: the model and its config.
      variables: its arrays, `TrainState.for_evaluation` or a restored run's.
      batch_size: images of a call.
      bucket: height and width of the padded images, one of `DataConfig.buckets`.
      platforms: kinds of devices that the artefact shall run on.
    """

    def function(
        images: UInt8[Array, "b h w 3"], image_size: Float[Array, "b 2"], scale: Float[Array, "b 2"]
    ) -> dict[str, Array]:
        found = predict(detector, variables, _batch(images, image_size, scale))
        arrays = {
            "boxes": found.boxes,
            "scores": found.scores,
            "labels": found.labels,
            "valid": found.valid,
        }
        return arrays if found.masks is None else arrays | {"masks": found.masks}

    shapes = (
        jax.ShapeDtypeStruct((batch_size, *bucket, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch_size, 2), jnp.float32),
        jax.ShapeDtypeStruct((batch_size, 2), jnp.float32),
    )
    return export.export(jax.jit(function), platforms=tuple(platforms))(*shapes)


def _batch(images: Array, image_size: Array, scale: Array) -> Batch:
    """A batch of real images without objects, which inference does not look at."""
    size = images.shape[0]
    return Batch(
        images=images,
        image_size=image_size,
        scale=scale,
        record_index=jnp.arange(size),
        is_real=jnp.ones(size, bool),
        ground_truth=GroundTruth(
            boxes=jnp.zeros((size, 1, 4)),
            labels=jnp.zeros((size, 1), jnp.int32),
            valid=jnp.zeros((size, 1), bool),
        ),
    )
