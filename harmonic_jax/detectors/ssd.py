"""SSD (Liu et al. 2016, "SSD: Single Shot MultiBox Detector").

Default boxes on the maps of a backbone and of layers above it, softmax scores, one-to-one and
max-IoU assignment, hard negatives. RefineDet is built on the same parts.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.backbones import BackboneConfig, VGGConfig, build_backbone
from harmonic_jax.backbones.layers import ConvLayer
from harmonic_jax.checks import check_fields, require
from harmonic_jax.detectors.parts.anchors import BOX_WEIGHTS, DefaultBoxConfig, make_default_boxes
from harmonic_jax.detectors.parts.heads import L2Norm, MultiBoxHead
from harmonic_jax.detectors.parts.matching import multibox_targets
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, masked, sample_sums
from harmonic_jax.detectors.parts.selection import (
    PostprocessConfig,
    mark_non_finite,
    select_detections,
)
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.structures import Batch, Detections, Predictions

ExtraLayer = Literal["3x3/2", "3x3", "4x4"]
# Kernel size, stride and padding of an extra layer's second convolution.
EXTRA_LAYERS: dict[ExtraLayer, tuple[int, int, int]] = {
    "3x3/2": (3, 2, 1),
    "3x3": (3, 1, 0),
    "4x4": (4, 1, 1),
}

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MultiBoxMatchConfig:
    """Assignment of default boxes, and the choice of negatives."""

    positive_iou: Annotated[float, "(0, 1]"] = 0.5
    """Besides, every object has the default box that overlaps it most for itself."""
    negative_ratio: Annotated[float, "[0, 1e6]"] = 3.0
    """Negatives a positive, in each image; those with the highest loss are taken."""

    def __post_init__(self) -> None:
        check_fields(self, "match")


@dataclasses.dataclass(frozen=True)
class SSDConfig:
    """SSD (Liu et al. 2016): levels of the backbone from stride 8 on, and of each extra layer."""

    backbone: BackboneConfig = VGGConfig(atrous=True, fc6_dilation=6)
    extra_layers: tuple[ExtraLayer, ...] = ("3x3/2", "3x3/2", "3x3", "3x3")
    """Second convolutions of the layers above the backbone; the first is 1x1. `3x3/2` halves the
    map; `3x3` (unpadded) takes two cells off each side; `4x4` (padded by one cell) one."""
    extra_channels: Annotated[int, "[8, 4096]"] = 256
    """Of the extra layers; the first has twice as many."""
    norm: Literal["none", "batch"] = "none"
    """Norm of the extra layers: `batch` to train from scratch."""
    l2_scales: Annotated[tuple[float, ...], "[0.001, 1000]"] = (20.0,)
    """Length of the feature vectors of the backbone's maps at the start of training, from stride 8
    on; maps without one are taken as they are."""
    default_boxes: DefaultBoxConfig = DefaultBoxConfig()
    match: MultiBoxMatchConfig = MultiBoxMatchConfig()
    postprocess: PostprocessConfig = PostprocessConfig(
        score_threshold=0.01, topk=400, nms_iou=0.45, max_detections=200
    )

    def __post_init__(self) -> None:
        check_fields(self, "model")
        levels, from_backbone = len(self.default_boxes.max_ratios), len(self._strides)
        require(
            len(self.extra_layers) == levels - from_backbone,
            "model.extra_layers",
            self.extra_layers,
            f"{levels - from_backbone} layers: with the {from_backbone} maps of model.backbone "
            "from stride 8 on they are the levels of model.default_boxes",
        )
        require(
            len(self.l2_scales) <= from_backbone,
            "model.l2_scales",
            self.l2_scales,
            f"at most {from_backbone} numbers: so many maps of model.backbone are used",
        )

    @property
    def _strides(self) -> tuple[int, ...]:
        """Of the backbone's maps that are used."""
        return tuple(stride for stride in self.backbone.strides if stride >= 8)

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: none, every layer rounds its size up."""
        return 1

    def level_shapes(self, image_shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Height and width of every level.

        Strides round up; of the extra layers `3x3/2` halves, rounding up; `3x3` takes two cells of
        each side, `4x4` one.

        Args:
          image_shape: height and width of the padded image, pixels.

        Returns:
          (h_l, w_l) of each level, finest first.

        Raises:
          ConfigError: nothing is left of a level.

        >>> SSDConfig().level_shapes((300, 300))
        ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
        """
        height, width = image_shape
        shapes = [(-(-height // stride), -(-width // stride)) for stride in self._strides]
        for layer in self.extra_layers:
            size, stride, padding = EXTRA_LAYERS[layer]
            h, w = ((side + 2 * padding - size) // stride + 1 for side in shapes[-1])
            shapes.append((h, w))
            require(
                min(h, w) >= 1,
                "model.extra_layers",
                self.extra_layers,
                f"shorter for images of {height} x {width} (data.short_sides, data.max_side): no "
                f"cell is left of level {len(shapes)}",
            )
        return tuple(shapes)


# --- Module --------------------------------------------------------------------------------------


def extra_layer(
    num_in: int,
    num_out: int,
    kind: ExtraLayer,
    *,
    norm: Literal["none", "batch"],
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.List:
    """A 1x1 convolution to half of the channels, and the second of `EXTRA_LAYERS`."""
    size, stride, padding = EXTRA_LAYERS[kind]
    conv = partial(ConvLayer, has_norm=norm == "batch", dtype=dtype, rngs=rngs)
    first = conv(num_in, num_out // 2, kernel_size=1)
    second = conv(num_out // 2, num_out, kernel_size=size, stride=stride, padding=padding)
    return nnx.List([first, second])


class SSD(nnx.Module):
    """Images -> class logits and box deltas of every default box.

    Called with `images` and `image_size` as a `backbones.Backbone` is.

    Returns of the call:
        `Predictions`, float32; logits of `num_classes + 1` classes, background last. The levels
        are those of `SSDConfig.level_shapes`.
    """

    def __init__(
        self, config: SSDConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        self.num_unused = config.backbone.strides.index(8)  # maps finer than the first level
        channels = list(config.backbone.channels[self.num_unused :])
        pairs = zip(channels, config.l2_scales, strict=False)
        self.l2_norms = nnx.List([L2Norm(num, scale=scale) for num, scale in pairs])
        extra = []
        for i, kind in enumerate(config.extra_layers):
            num_out = config.extra_channels * (2 if i == 0 else 1)
            layer = extra_layer(
                channels[-1], num_out, kind, norm=config.norm, dtype=dtype, rngs=rngs
            )
            extra.append(layer)
            channels.append(num_out)
        self.extra = nnx.List(extra)
        self.head = MultiBoxHead(
            channels,
            num_outputs=num_classes + 1,
            per_location=config.default_boxes.per_location,
            dtype=dtype,
            rngs=rngs,
        )
        self.config = config

    def __call__(self, images: jax.Array, image_size: jax.Array | None = None) -> Predictions:
        levels = list(self.backbone(images, image_size)[self.num_unused :])
        for i, norm in enumerate(self.l2_norms):
            levels[i] = norm(levels[i])
        for pair in self.extra:
            x = levels[-1]
            for conv in pair:
                x = conv(x)
            levels.append(x)
        return self.head(levels)


def default_boxes(config: SSDConfig, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Those of every level, for padded images of `shape` = (height, width)."""
    boxes = config.default_boxes
    return make_default_boxes(
        shape,
        config.level_shapes(shape),
        sizes=boxes.sizes[:-1],
        large_sizes=boxes.sizes[1:],
        max_ratios=boxes.max_ratios,
        steps=boxes.steps,
        clip_sides=boxes.clip_sides,
    )


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: SSD, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """Assigns the objects to default boxes and sums the losses, to be divided by the positives.

    Nothing is drawn at random. See `detectors.loss_sums`, and `multibox_sums`.
    """
    anchors = jnp.concatenate(default_boxes(model.config, batch.images.shape[1:3]))
    predictions = model(batch.images, batch.image_size)
    return multibox_sums(predictions, anchors, batch, loss, model.config.match)


def multibox_sums(
    predictions: Predictions,
    anchors: Float[Array, "n 4"] | Float[Array, "b n 4"],
    batch: Batch,
    loss: LossConfig,
    match: MultiBoxMatchConfig,
    is_candidate: Bool[Array, "b n"] | None = None,
) -> LossSums:
    """Cross entropy and SmoothL1, or HarDet, of positives and hard negatives.

    Positives contribute L_i of the HarDet formula (or cross entropy + SmoothL1 for the baseline).
    Of the negatives of each image, those with the highest cross entropy contribute it,
    `match.negative_ratio` for each positive: none in an image without objects.

    Args:
      predictions: raw outputs, [b, n_l, k + 1] (background last) and [b, n_l, 4] a level, the
        deltas relative to `anchors`.
      anchors: of all levels, xyxy pixels; those of each image where they differ.
      batch: its objects, and which images are real.
      loss: which losses, and their constants.
      match: thresholds of the assignment, and how many negatives.
      is_candidate: False: no negative, whatever its loss is. None: all may be.

    Source: Liu et al., SSD, 2016, section 2.2.
    """
    cls_logits = jnp.concatenate(predictions.cls_logits, axis=1)
    deltas = jnp.concatenate(predictions.deltas, axis=1)
    assign = partial(
        multibox_targets, num_classes=cls_logits.shape[-1] - 1, positive_iou=match.positive_iou
    )
    in_axes = (0 if anchors.ndim == 3 else None, 0)
    targets = jax.vmap(assign, in_axes=in_axes)(anchors, batch.ground_truth)
    anchors = jnp.broadcast_to(anchors, deltas.shape)

    counted = jnp.broadcast_to(batch.is_real[:, None], targets.is_positive.shape)
    positive = targets.is_positive & counted
    if is_candidate is not None:
        counted &= targets.is_positive | is_candidate
    cls_loss = losses.softmax_cross_entropy(cls_logits, targets.labels, where=counted)
    negative = hardest(cls_loss, counted & ~positive, positive.sum(-1), ratio=match.negative_ratio)

    deltas = masked(deltas, positive)
    box_loss = losses.smooth_l1_loss(
        deltas,
        encode_boxes(targets.boxes, anchors, weights=BOX_WEIGHTS),
        beta=loss.smooth_l1_beta,
        where=positive,
    )
    boxes = decode_boxes(deltas, anchors, weights=BOX_WEIGHTS)
    iou = losses.aligned_iou(boxes, targets.boxes, where=positive)
    return sample_sums(
        cls_loss,
        box_loss,
        jnp.exp(-cls_loss),
        iou,
        losses.softmax_entropy(cls_logits, where=positive),
        cross_entropy=cls_loss,  # of a softmax head they are one
        positive=positive,
        negative=negative,
        loss=loss,
    )


def hardest(
    loss: Float[Array, "b n"],
    is_candidate: Bool[Array, "b n"],
    num_positive: Array,
    *,
    ratio: float,
) -> Bool[Array, "b n"]:
    """The candidates of each image with the highest losses, `ratio` for each of its positives.

    Args:
      loss: [b, n]; a NaN is the highest, so that it shows in the sum.
      is_candidate: [b, n].
      num_positive: [b] int.
      ratio: the number is rounded down; where there are fewer candidates all are taken.

    Returns:
      [b, n], exactly as many as asked: among equal losses the first ones are taken.
    """
    loss = jax.lax.stop_gradient(jnp.where(jnp.isnan(loss), jnp.inf, loss))
    loss = jnp.where(is_candidate, loss, -jnp.inf)
    wanted = jnp.minimum(jnp.floor(ratio * num_positive), is_candidate.sum(-1)).astype(jnp.int32)
    ranked = jnp.sort(loss, axis=-1, descending=True)
    last = jnp.take_along_axis(ranked, jnp.maximum(wanted - 1, 0)[:, None], axis=-1)
    is_above = loss > last
    is_equal = (loss == last) & is_candidate
    place = is_above.sum(-1, keepdims=True) + jnp.cumsum(is_equal, axis=-1)
    is_taken = is_above | (is_equal & (place <= wanted[:, None]))
    return is_taken & (wanted > 0)[:, None]


# --- Detections ----------------------------------------------------------------------------------


def detect(model: SSD, batch: Batch) -> Detections:
    """Of each class the `postprocess.topk` best boxes are suppressed. See `detectors.detect`."""
    anchors = jnp.concatenate(default_boxes(model.config, batch.images.shape[1:3]))
    predictions = model(batch.images, batch.image_size)
    cls_logits = jnp.concatenate(predictions.cls_logits, axis=1)
    deltas = jnp.concatenate(predictions.deltas, axis=1)
    boxes = decode_boxes(deltas, jnp.broadcast_to(anchors, deltas.shape), weights=BOX_WEIGHTS)
    is_candidate = jnp.ones(boxes.shape[:2], jnp.bool_)
    found = jax.vmap(lambda *arrays: detect_in_image(*arrays, config=model.config.postprocess))(
        cls_logits, boxes, is_candidate, batch.image_size
    )
    return mark_non_finite(found, predictions)


def detect_in_image(
    cls_logits: Float[Array, "n c"],
    boxes: Float[Array, "n 4"],
    is_candidate: Bool[Array, " n"],
    image_size: Float[Array, " 2"],
    *,
    config: PostprocessConfig,
) -> Detections:
    """The detections of one image from the logits of all classes, background last, and boxes.

    A box that is no candidate, is not finite or has a NaN logit is never detected.
    """
    num_boxes, num_classes = cls_logits.shape[0], cls_logits.shape[1] - 1
    is_candidate &= jnp.isfinite(boxes).all(axis=-1)
    boxes, cls_logits = (
        jnp.where(is_candidate[:, None], array, 0.0) for array in (boxes, cls_logits)
    )
    probs = jax.nn.softmax(cls_logits, axis=-1)[:, :-1]
    # NaN compares as False.
    is_scored = is_candidate[:, None] & (probs > config.score_threshold)
    # A class at a time: [k t], best first. Scores of -1 spare the selection work.
    topk = num_boxes if config.topk is None else min(config.topk, num_boxes)
    scores, rows = jax.lax.top_k(jnp.where(is_scored, probs, -1.0).T, topk)
    labels = jnp.broadcast_to(jnp.arange(num_classes, dtype=jnp.int32)[:, None], rows.shape)
    scores, rows, labels = scores.reshape(-1), rows.reshape(-1), labels.reshape(-1)
    return select_detections(boxes[rows], scores, labels, image_size, config)
