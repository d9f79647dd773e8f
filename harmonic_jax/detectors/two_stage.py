"""Faster R-CNN and Mask R-CNN: proposals, then classes, boxes and masks of proposals.

Ground truth enters between the calls of the model: it is matched to anchors for the RPN, to
proposals for the RoI head, and cut to the positive RoIs for the mask head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from harmonic_jax.assign.anchors import make_anchors
from harmonic_jax.assign.sampled import AnchorSamples, RoISamples, sample_anchors, sample_rois
from harmonic_jax.config import Config, FasterRCNNConfig
from harmonic_jax.detectors.non_finite import mark_non_finite
from harmonic_jax.models.faster_rcnn import FasterRCNN, Features
from harmonic_jax.models.mask_rcnn import MaskRCNN
from harmonic_jax.objectives.mask import mask_objective
from harmonic_jax.objectives.sums import LossSums, join_groups
from harmonic_jax.objectives.two_stage import roi_objective, rpn_objective
from harmonic_jax.ops.mask_targets import crop_masks
from harmonic_jax.postprocess.proposals import Proposals, select_proposals
from harmonic_jax.postprocess.two_stage import postprocess_rois, take_masks
from harmonic_jax.structures import Batch, Detections, GroundTruth, Predictions

Anchors = tuple[Float[Array, "n 4"], ...]
Keys = Key[Array, " b"]


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    config: Config,
    key: jax.Array,
    batch_axis: str | None,
) -> LossSums:
    """See `detectors.loss_sums`."""
    assert isinstance(model, FasterRCNN)
    settings = model.config
    anchors = _anchors(settings, batch)
    features = model.features(batch.images, batch.image_size)
    predictions = model.propose(features)
    proposals = _select(
        predictions,
        anchors,
        batch,
        settings,
        topk=settings.rpn.topk_train,
        num_proposals=settings.rpn.num_proposals_train,
    )
    # Draws depend on the record, not on its place in the batch.
    keys = jax.vmap(lambda record: jax.random.split(jax.random.fold_in(key, record)))(
        batch.record_index
    )
    rpn = rpn_objective(
        predictions,
        _sample_anchors(keys[:, 0], anchors, batch.ground_truth, settings),
        batch.is_real,
        smooth_l1_beta=settings.rpn.smooth_l1_beta,
    )
    rois = _sample_rois(keys[:, 1], proposals, batch.ground_truth, model)
    cls_logits, deltas = model.classify(features, rois.boxes, rois.valid)
    boxes, log = roi_objective(
        cls_logits,
        deltas,
        rois,
        batch.is_real,
        loss=config.loss,
        delta_weights=settings.box_head.delta_weights,
    )
    masks = [_mask_sums(model, features, rois, batch)] if isinstance(model, MaskRCNN) else []
    return join_groups([rpn, *masks, boxes, log], batch.is_real, batch_axis=batch_axis)


def detect(model: nnx.Module, batch: Batch, config: Config) -> Detections:
    """See `detectors.detect`."""
    assert isinstance(model, FasterRCNN)
    settings = model.config
    features = model.features(batch.images, batch.image_size)
    predictions = model.propose(features)
    proposals = _select(
        predictions,
        _anchors(settings, batch),
        batch,
        settings,
        topk=settings.rpn.topk_eval,
        num_proposals=settings.rpn.num_proposals_eval,
    )
    cls_logits, deltas = model.classify(features, proposals.boxes, proposals.valid)
    detections = postprocess_rois(
        cls_logits,
        deltas,
        proposals,
        batch.image_size,
        score_threshold=settings.postprocess.score_threshold,
        nms_iou=settings.postprocess.nms_iou,
        max_detections=settings.postprocess.max_detections,
        suppression=settings.postprocess.nms,
        nms_sigma=settings.postprocess.nms_sigma,
        min_size=settings.postprocess.min_size,
        weights=settings.box_head.delta_weights,
    )
    detections = mark_non_finite(detections, (predictions, cls_logits, deltas))
    if not isinstance(model, MaskRCNN):
        return detections
    # Masks are of the final boxes, not of the proposals: 100 in place of 1000, and better placed.
    logits = model.segment(features, detections.boxes, detections.valid, skips_padding=True)
    with_masks = take_masks(logits, detections)
    return mark_non_finite(with_masks, with_masks.masks)


def _anchors(settings: FasterRCNNConfig, batch: Batch) -> Anchors:
    """Constants of the compiled program: they depend on the shape of the bucket alone."""
    _, height, width, _ = batch.images.shape
    anchors = make_anchors(
        (height, width),
        levels=settings.levels,
        size_factor=settings.rpn.anchors.size_factor,
        scales=settings.rpn.anchors.scales,
        ratios=settings.rpn.anchors.ratios,
        rounding=settings.rpn.anchors.rounding == "torchvision",
    )
    return tuple(jnp.asarray(level) for level in anchors)


def _select(
    predictions: Predictions,
    anchors: Anchors,
    batch: Batch,
    settings: FasterRCNNConfig,
    *,
    topk: int,
    num_proposals: int,
) -> Proposals:
    return select_proposals(
        predictions,
        anchors,
        batch.image_size,
        pre_nms_topk=topk,
        post_nms_topk=num_proposals,
        nms_iou=settings.rpn.nms_iou,
    )


def _sample_anchors(
    keys: Keys, anchors: Anchors, ground_truth: GroundTruth, settings: FasterRCNNConfig
) -> AnchorSamples:
    rpn = settings.rpn

    def sample(key: jax.Array, truth: GroundTruth) -> AnchorSamples:
        return sample_anchors(
            key,
            anchors,
            truth,
            positive_iou=rpn.match.positive_iou,
            negative_iou=rpn.match.negative_iou,
            low_quality=rpn.match.low_quality,
            num_samples=rpn.num_samples,
            positive_fraction=rpn.positive_fraction,
        )

    return jax.vmap(sample)(keys, ground_truth)


def _sample_rois(
    keys: Keys, proposals: Proposals, ground_truth: GroundTruth, model: FasterRCNN
) -> RoISamples:
    head = model.config.box_head

    def sample(key: jax.Array, proposals: Proposals, truth: GroundTruth) -> RoISamples:
        return sample_rois(
            key,
            proposals.boxes,
            proposals.valid,
            truth,
            num_classes=model.num_classes,
            positive_iou=head.match.positive_iou,
            negative_iou=head.match.negative_iou,
            low_quality=head.match.low_quality,
            num_samples=head.num_samples,
            positive_fraction=head.positive_fraction,
        )

    return jax.vmap(sample)(keys, proposals, ground_truth)


def _mask_sums(model: MaskRCNN, features: Features, rois: RoISamples, batch: Batch) -> LossSums:
    """The masks of the positive RoIs, which come first among the samples."""
    assert batch.ground_truth.masks is not None
    head, masks = model.config.box_head, batch.ground_truth.masks
    most = max(1, int(head.num_samples * head.positive_fraction))
    positives = jax.tree.map(lambda rows: rows[:, :most], rois)
    logits = model.segment(features, positives.boxes, positives.is_positive)
    crop = functools.partial(crop_masks, size=logits.shape[-2])
    coverage = jax.vmap(crop)(masks.values, masks.frames, positives.objects, positives.boxes)
    # A grid of zeros is a mask that the data do not tell: there is nothing to learn from it.
    known = jnp.take_along_axis(masks.values.any(axis=(2, 3)), positives.objects, axis=1)
    with_mask = positives._replace(is_positive=positives.is_positive & known)
    return mask_objective(logits, coverage, with_mask, batch.is_real)
