"""RefineDet: SSD's assignment and losses twice, the second time on refined anchors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from harmonic_jax.assign.anchors import level_shapes
from harmonic_jax.assign.default_boxes import BOX_WEIGHTS, make_default_boxes
from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.detectors.non_finite import mark_non_finite
from harmonic_jax.objectives.refinedet import refine_anchors, refinedet_objective
from harmonic_jax.objectives.sums import LossSums
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.postprocess.multibox import postprocess_multibox
from harmonic_jax.structures import Batch, Detections

LEVELS = (3, 6)  # Strides 8, 16, 32 and 64.


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    config: Config,
    key: jax.Array,
    batch_axis: str | None,
) -> LossSums:
    """See `detectors.loss_sums`; nothing is drawn at random."""
    assert isinstance(config.model, RefineDetConfig)
    predictions = model(batch.images, batch.image_size)
    return refinedet_objective(
        predictions.arm,
        predictions.odm,
        _anchors(config.model, batch),
        batch.ground_truth,
        batch.is_real,
        loss=config.loss,
        match=config.model.match,
        min_objectness=config.model.min_objectness,
        batch_axis=batch_axis,
    )


def detect(model: nnx.Module, batch: Batch, config: Config) -> Detections:
    """See `detectors.detect`: the ODM's deltas are relative to the anchors the ARM moved."""
    assert isinstance(config.model, RefineDetConfig)
    settings = config.model.postprocess
    arm, odm = model(batch.images, batch.image_size)
    refined, objectness = refine_anchors(arm, _anchors(config.model, batch))
    found = postprocess_multibox(
        jnp.concatenate(odm.cls_logits, axis=1),
        decode_boxes(jnp.concatenate(odm.deltas, axis=1), refined, weights=BOX_WEIGHTS),
        batch.image_size,
        score_threshold=settings.score_threshold,
        topk_per_class=settings.topk_per_class,
        nms_iou=settings.nms_iou,
        max_detections=settings.max_detections,
        suppression=settings.nms,
        nms_sigma=settings.nms_sigma,
        is_candidate=objectness >= config.model.min_objectness,
    )
    return mark_non_finite(found, (arm, odm))


def _anchors(config: RefineDetConfig, batch: Batch) -> tuple[Float[Array, "n 4"], ...]:
    """Constants of the compiled program: they depend on the shape of the bucket alone."""
    _, height, width, _ = batch.images.shape
    strides = [2.0**level for level in range(LEVELS[0], LEVELS[1] + 1)]
    levels = make_default_boxes(
        (height, width),
        level_shapes((height, width), LEVELS),
        sizes=[config.size_factor * stride for stride in strides],
        large_sizes=None,
        max_ratios=[config.max_ratio] * len(strides),
        steps=strides,
    )
    return tuple(jnp.asarray(level) for level in levels)
