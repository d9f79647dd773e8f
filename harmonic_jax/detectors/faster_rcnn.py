"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017).

Proposals of a region proposal network (`rpn`), then classes and boxes of them (`roi_head`). Ground
truth enters between the calls of the model: it is matched to anchors for the RPN and to proposals
for the RoI head. Mask R-CNN is built on this file.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from harmonic_jax.backbones import BackboneConfig, ResNetConfig, build_backbone
from harmonic_jax.backbones.norm import NewNormKind, check_groups
from harmonic_jax.checks import check_fields
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.parts.matching import Samples, draw_samples
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, join_groups
from harmonic_jax.detectors.parts.pyramid import LAST_BACKBONE_LEVEL, FeaturePyramid, check_pyramid
from harmonic_jax.detectors.parts.selection import (
    PostprocessConfig,
    mark_non_finite,
    select_detections,
)
from harmonic_jax.detectors.roi_head import (
    BoxHead,
    BoxHeadConfig,
    RoIAlignConfig,
    roi_sums,
    sample_rois,
)
from harmonic_jax.detectors.rpn import (
    Proposals,
    RPNConfig,
    RPNHead,
    rpn_sums,
    select_proposals,
)
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.ops.roi_align import pyramid_roi_align
from harmonic_jax.structures import Batch, Detections, Predictions

Features = tuple[jax.Array, ...]

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FasterRCNNConfig:
    """Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017)."""

    backbone: BackboneConfig = ResNetConfig()
    levels: Annotated[tuple[int, int], "[2, 7]"] = (2, 6)
    """First and last pyramid level of the RPN; RoIs are pooled from those up to 5."""
    channels: Annotated[int, "[8, 4096]"] = 256
    fpn_norm: NewNormKind = "none"
    """torchvision's v2 has `batch`."""
    rpn: RPNConfig = RPNConfig()
    roi_align: RoIAlignConfig = RoIAlignConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    postprocess: PostprocessConfig = PostprocessConfig(topk=None, min_size=0.01)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        check_pyramid(self.backbone, self.levels)
        for norm in (self.fpn_norm, self.box_head.norm):
            check_groups("model.channels", self.channels, norm)

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: the backbone's last stride."""
        return 32


# --- Module --------------------------------------------------------------------------------------


class FasterRCNN(nnx.Module):
    """Two stages that are called apart, because selection and assignment lie between them.

    `features` -> `propose` -> (proposals, or samples of them in training) -> `classify`.
    """

    def __init__(
        self, config: FasterRCNNConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        self.fpn = FeaturePyramid(
            config.backbone,
            config.levels,
            config.channels,
            extra_levels_from="pool",
            norm=config.fpn_norm,
            dtype=dtype,
            rngs=rngs,
        )
        self.rpn = RPNHead(config.rpn, config.channels, dtype=dtype, rngs=rngs)
        self.box_head = BoxHead(
            config.box_head, config.channels, num_classes, dtype=dtype, rngs=rngs
        )
        self.config = config
        self.num_classes = num_classes

    def features(self, images: jax.Array, image_size: jax.Array | None = None) -> Features:
        """Images -> the levels of the pyramid, finest first.

        Args:
            images: `[b, h, w, 3]` uint8, RGB.
            image_size: `[b, 2]` height and width without padding, or None.

        Returns:
            `[b, ceil(h / 2**l), ceil(w / 2**l), channels]` for each level l.
        """
        return self.fpn(self.backbone(images, image_size))

    def propose(self, features: Features) -> Predictions:
        """The levels -> objectness logits `[b, n, 1]` and deltas `[b, n, 4]` of each."""
        logits, deltas = zip(*(self.rpn(level) for level in features), strict=True)
        return Predictions(cls_logits=logits, deltas=deltas)

    def classify(
        self, features: Features, boxes: jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Regions -> classes and refined boxes.

        Args:
            features: all levels.
            boxes: `[b, r, 4]`, xyxy in pixels; constants, no gradient flows to them.
            valid: `[b, r]`, False for padding, which takes no part in batch statistics.

        Returns:
            Logits `[b, r, k + 1]`, background last, and deltas `[b, r, k + 1, 4]`, float32.
        """
        rois = self.pool(features, boxes, self.config.box_head.pool_size)
        logits, deltas = self.box_head(rois, None if valid is None else valid.reshape(-1))
        shape = boxes.shape[:2]
        return logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)

    def pool(self, features: Features, boxes: jax.Array, size: int) -> jax.Array:
        """RoIAlign on the levels up to 5: `[b * r, s, s, c]`."""
        first = self.config.levels[0]
        settings = dataclasses.asdict(self.config.roi_align)
        rois = jax.vmap(
            lambda levels, boxes: pyramid_roi_align(
                levels, boxes, output_size=size, first_level=first, **settings
            )
        )(features[: LAST_BACKBONE_LEVEL + 1 - first], boxes)
        return rois.reshape(-1, *rois.shape[2:])


def propose(
    model: FasterRCNN, batch: Batch, *, is_training: bool
) -> tuple[Features, Predictions, Proposals]:
    """The first stage: the pyramid's levels, what the RPN says of them, and its proposals."""
    config = model.config
    anchors = make_anchors(batch.images.shape[1:3], config.levels, config.rpn.anchors)
    features = model.features(batch.images, batch.image_size)
    predictions = model.propose(features)
    proposals = jax.vmap(
        lambda predictions, size: select_proposals(
            predictions, anchors, size, config.rpn, is_training=is_training
        )
    )(predictions, batch.image_size)
    return features, predictions, proposals


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: FasterRCNN, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """RPN / N_anchors + RoI head / N_rois, the numbers of samples. See `detectors.loss_sums`."""
    _, _, rpn, boxes, log = stage_sums(model, batch, loss, key)
    return join_groups([rpn, boxes, log], batch.is_real, batch_axis=batch_axis)


def stage_sums(
    model: FasterRCNN, batch: Batch, loss: LossConfig, key: jax.Array
) -> tuple[Features, Samples, LossSums, LossSums, LossSums]:
    """Both stages in training.

    Returns:
      The levels, the sampled RoIs, and the loss sums of the RPN and of the RoI head and what is
      logged of it, to be divided by their own numbers.
    """
    config, truth = model.config, batch.ground_truth
    features, predictions, proposals = propose(model, batch, is_training=True)
    # Draws depend on the record, not on its place in the batch.
    keys = jax.vmap(lambda record: jax.random.split(jax.random.fold_in(key, record)))(
        batch.record_index
    )
    levels = make_anchors(batch.images.shape[1:3], config.levels, config.rpn.anchors)
    anchors = np.concatenate(levels)
    samples = jax.vmap(
        lambda key, truth: draw_samples(
            key,
            anchors,
            np.ones(len(anchors), bool),
            truth,
            match=config.rpn.match,
            num_samples=config.rpn.num_samples,
            positive_fraction=config.rpn.positive_fraction,
            num_classes=1,
        )
    )(keys[:, 0], truth)
    rpn = rpn_sums(predictions, samples, batch.is_real, config.rpn)
    rois = jax.vmap(
        lambda key, proposals, truth: sample_rois(
            key, proposals, truth, config.box_head, num_classes=model.num_classes
        )
    )(keys[:, 1], proposals, truth)
    cls_logits, deltas = model.classify(features, rois.boxes, rois.valid)
    boxes, log = roi_sums(cls_logits, deltas, rois, batch.is_real, loss, config.box_head)
    return features, rois, rpn, boxes, log


# --- Detections ----------------------------------------------------------------------------------


def detect(model: FasterRCNN, batch: Batch) -> Detections:
    """Every proposal is decoded once for each class. See `detectors.detect`."""
    return detect_boxes(model, batch)[1]


def detect_boxes(model: FasterRCNN, batch: Batch) -> tuple[Features, Detections]:
    """The levels, and the detections of each image."""
    config = model.config
    features, predictions, proposals = propose(model, batch, is_training=False)
    cls_logits, deltas = model.classify(features, proposals.boxes, proposals.valid)
    found = jax.vmap(lambda *arrays: detect_in_image(*arrays, config=config))(
        cls_logits, deltas, proposals, batch.image_size
    )
    return features, mark_non_finite(found, (predictions, cls_logits, deltas))


def detect_in_image(
    cls_logits: Float[Array, "p c"],
    deltas: Float[Array, "p c 4"],
    proposals: Proposals,
    image_size: Float[Array, " 2"],
    *,
    config: FasterRCNNConfig,
) -> Detections:
    """The detections of one image; the last class is background, whose deltas are not looked at.

    A proposal with a NaN logit and boxes that are not finite are never detected.

    Source: Girshick, Fast R-CNN, 2015, section 3.1.
    """
    num_proposals, num_classes = cls_logits.shape[0], cls_logits.shape[1] - 1
    scores = jax.nn.softmax(cls_logits, axis=-1)[:, :num_classes]
    scores = jnp.where(proposals.valid[:, None], scores, 0.0).reshape(-1)
    shape = (num_proposals, num_classes, 4)
    boxes = decode_boxes(
        deltas[:, :num_classes],
        jnp.broadcast_to(proposals.boxes[:, None], shape),
        weights=config.box_head.delta_weights,
    ).reshape(-1, 4)
    labels = jnp.asarray(np.tile(np.arange(num_classes, dtype=np.int32), num_proposals))
    topk = config.postprocess.topk
    if topk is not None and topk < scores.shape[0]:
        scores, rows = jax.lax.top_k(jnp.where(jnp.isnan(scores), 0.0, scores), topk)
        boxes, labels = boxes[rows], labels[rows]
    return select_detections(boxes, scores, labels, image_size, config.postprocess)
