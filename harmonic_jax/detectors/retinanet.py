"""RetinaNet: dense predictions, max-IoU assignment, focal loss, sigmoid scores."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from harmonic_jax.assign.anchors import make_anchors
from harmonic_jax.config import Config, RetinaNetConfig
from harmonic_jax.detectors.non_finite import mark_non_finite
from harmonic_jax.objectives.dense import dense_objective
from harmonic_jax.objectives.sums import LossSums
from harmonic_jax.postprocess.dense import postprocess_dense
from harmonic_jax.structures import Batch, Detections


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    config: Config,
    key: jax.Array,
    batch_axis: str | None,
) -> LossSums:
    """See `detectors.loss_sums`; nothing is drawn at random."""
    assert isinstance(config.model, RetinaNetConfig)
    return dense_objective(
        model(batch.images, batch.image_size),
        _anchors(config.model, batch),
        batch.ground_truth,
        batch.is_real,
        loss=config.loss,
        match=config.model.match,
        batch_axis=batch_axis,
    )


def detect(model: nnx.Module, batch: Batch, config: Config) -> Detections:
    """See `detectors.detect`."""
    assert isinstance(config.model, RetinaNetConfig)
    settings = config.model.postprocess
    predictions = model(batch.images, batch.image_size)
    found = postprocess_dense(
        predictions,
        _anchors(config.model, batch),
        batch.image_size,
        score_threshold=settings.score_threshold,
        topk_per_level=settings.topk_per_level,
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
        suppression=settings.nms,
        nms_sigma=settings.nms_sigma,
    )
    return mark_non_finite(found, predictions)


def _anchors(config: RetinaNetConfig, batch: Batch) -> tuple[Float[Array, "n 4"], ...]:
    """Constants of the compiled program: they depend on the shape of the bucket alone."""
    _, height, width, _ = batch.images.shape
    anchors = make_anchors(
        (height, width),
        levels=config.levels,
        size_factor=config.anchors.size_factor,
        scales=config.anchors.scales,
        ratios=config.anchors.ratios,
        rounding=config.anchors.rounding == "torchvision",
    )
    return tuple(jnp.asarray(level) for level in anchors)
