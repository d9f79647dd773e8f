"""SSD: default boxes, one-to-one and max-IoU assignment, hard negatives, softmax scores."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from harmonic_jax.assign.default_boxes import BOX_WEIGHTS, make_default_boxes
from harmonic_jax.config import Config, SSDConfig
from harmonic_jax.detectors.non_finite import mark_non_finite
from harmonic_jax.objectives.multibox import multibox_objective
from harmonic_jax.objectives.sums import LossSums
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.postprocess.multibox import postprocess_multibox
from harmonic_jax.structures import Batch, Detections


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    config: Config,
    key: jax.Array,
    batch_axis: str | None,
) -> LossSums:
    """See `detectors.loss_sums`; nothing is drawn at random."""
    assert isinstance(config.model, SSDConfig)
    return multibox_objective(
        model(batch.images, batch.image_size),
        _default_boxes(config.model, batch),
        batch.ground_truth,
        batch.is_real,
        loss=config.loss,
        match=config.model.match,
    )


def detect(model: nnx.Module, batch: Batch, config: Config) -> Detections:
    """See `detectors.detect`."""
    assert isinstance(config.model, SSDConfig)
    settings = config.model.postprocess
    predictions = model(batch.images, batch.image_size)
    deltas = jnp.concatenate(predictions.deltas, axis=1)
    anchors = jnp.concatenate(_default_boxes(config.model, batch))
    found = postprocess_multibox(
        jnp.concatenate(predictions.cls_logits, axis=1),
        decode_boxes(deltas, jnp.broadcast_to(anchors, deltas.shape), weights=BOX_WEIGHTS),
        batch.image_size,
        score_threshold=settings.score_threshold,
        topk_per_class=settings.topk_per_class,
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
        suppression=settings.nms,
        nms_sigma=settings.nms_sigma,
    )
    return mark_non_finite(found, predictions)


def _default_boxes(config: SSDConfig, batch: Batch) -> tuple[Float[Array, "n 4"], ...]:
    """Constants of the compiled program: they depend on the shape of the bucket alone."""
    _, height, width, _ = batch.images.shape
    boxes = config.default_boxes
    levels = make_default_boxes(
        (height, width),
        config.level_shapes((height, width)),
        sizes=boxes.sizes[:-1],
        large_sizes=boxes.sizes[1:],
        max_ratios=boxes.max_ratios,
        steps=boxes.steps,
        clip_sides=boxes.clip_sides,
    )
    return tuple(jnp.asarray(level) for level in levels)
