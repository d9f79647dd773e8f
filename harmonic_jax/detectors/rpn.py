"""The region proposal network (Ren et al. 2015): the first stage of Faster R-CNN and Mask R-CNN.

Anchors of a feature pyramid -> objectness and boxes -> proposals.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Real

from harmonic_jax import losses
from harmonic_jax.backbones.conv import Conv, head_normal
from harmonic_jax.checks import check_fields
from harmonic_jax.detectors.parts.anchors import AnchorConfig
from harmonic_jax.detectors.parts.heads import by_anchor
from harmonic_jax.detectors.parts.matching import MatchConfig, Samples
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.ops.box_coder import decode_boxes, encode_boxes
from harmonic_jax.ops.boxes import AnyArray, clip_boxes
from harmonic_jax.ops.nms import batched_nms
from harmonic_jax.structures import Predictions

MIN_SIZE = 1e-3  # Least width and height of a proposal, pixels.

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RPNConfig:
    """Region proposal network (Ren et al. 2015): anchors -> objectness -> proposals."""

    anchors: AnchorConfig = AnchorConfig(size_factor=8.0, scales=(1.0,))
    """One size a level: 32 pixels on P2 to 512 on P6."""
    num_convs: Annotated[int, "[1, 16]"] = 1
    """3x3 convolutions before the outputs; torchvision's v2 has 2."""
    match: MatchConfig = MatchConfig(positive_iou=0.7, negative_iou=0.3)
    num_samples: Annotated[int, "[1, 100000]"] = 256
    """Anchors an image that the losses see."""
    positive_fraction: Annotated[float, "(0, 1]"] = 0.5
    """Upper bound of the positives among them."""
    smooth_l1_beta: Annotated[float, "[0, 1000]"] = 1 / 9
    """torchvision's; detectron2 has 0, the L1 loss."""
    topk_train: Annotated[int, "[1, 100000]"] = 2000
    """Best anchors of each level that enter the suppression, in training."""
    topk_eval: Annotated[int, "[1, 100000]"] = 1000
    nms_iou: Annotated[float, "[0, 1]"] = 0.7
    num_proposals_train: Annotated[int, "[1, 100000]"] = 1000
    """Proposals of all levels together, in training; torchvision keeps 2000."""
    num_proposals_eval: Annotated[int, "[1, 100000]"] = 1000

    def __post_init__(self) -> None:
        check_fields(self, "rpn")


# --- Module --------------------------------------------------------------------------------------


class RPNHead(nnx.Module):
    """`config.num_convs` times (3x3 convolution, ReLU), then 1x1 to objectness and to box deltas.

    Args of the call:
        x: `[b, h, w, channels]`.

    Returns of the call:
        Logits `[b, h * w * anchors, 1]` and deltas `[b, h * w * anchors, 4]`, float32:
        rows, then columns, then the anchors of a location, the order of `make_anchors`.
    """

    def __init__(
        self, config: RPNConfig, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        conv = partial(Conv, channels, bias=0.0, kernel_init=head_normal, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([conv(channels, kernel_size=3) for _ in range(config.num_convs)])
        self.objectness = conv(config.anchors.per_location, kernel_size=1)
        self.deltas = conv(4 * config.anchors.per_location, kernel_size=1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return by_anchor(self.objectness(x), 1), by_anchor(self.deltas(x), 4)


# --- Targets and loss ----------------------------------------------------------------------------


def rpn_sums(
    predictions: Predictions, samples: Samples, is_real: Bool[Array, " b"], config: RPNConfig
) -> LossSums:
    """Binary cross entropy of the sampled anchors and SmoothL1 of the positive ones.

    Both are divided by the number of sampled anchors.

    Args:
      predictions: objectness logits [b, n_l, 1] and deltas [b, n_l, 4] a level.
      samples: [b, s], of the same anchors.
      is_real: [b], False for slots that only fill the batch.
      config: `smooth_l1_beta`, of SmoothL1.

    Returns:
      Sums over the batch, with the terms `rpn_cls_loss` and `rpn_box_loss`.

    Source: Ren et al., Faster R-CNN, 2015, equation 1 (its lambda balances the two numbers of
      anchors; divided by the same number, both losses weigh 1).
    """
    logits = _take(predictions.cls_logits, samples)  # [b, s, 1]
    deltas = _take(predictions.deltas, samples)
    counted = samples.valid & is_real[:, None]
    positive = samples.is_positive & counted
    # One class, 0: an anchor that is not positive has a label that is none.
    labels = jnp.where(samples.is_positive, 0, 1)
    cls_loss = losses.sigmoid_cross_entropy(logits, labels, where=counted).sum()
    target_deltas = encode_boxes(samples.targets, samples.boxes)
    box_loss = losses.smooth_l1_loss(
        deltas, target_deltas, beta=config.smooth_l1_beta, where=positive
    ).sum()
    return LossSums(
        cls_loss + box_loss,
        {"rpn_cls_loss": cls_loss, "rpn_box_loss": box_loss},
        normalizer=counted.sum(dtype=jnp.float32),
        num_positive=positive.sum(dtype=jnp.float32),
    )


def _take(levels: tuple[Float[Array, "b _ _"], ...], samples: Samples) -> Array:
    """Rows of the sampled anchors, [b, s, _]."""
    rows = samples.rows[..., None]
    return jnp.take_along_axis(jnp.concatenate(levels, axis=1), rows, axis=1)


# --- Proposals -----------------------------------------------------------------------------------


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first, padded to a fixed number."""

    boxes: Float[Array, "*b p 4"]  # xyxy in pixels
    scores: Float[Array, "*b p"]  # objectness, in [0, 1]
    valid: Bool[Array, "*b p"]


def select_proposals(
    predictions: Predictions,
    anchors: Sequence[Real[AnyArray, "_ 4"]],
    image_size: Real[AnyArray, "2"],
    config: RPNConfig,
    *,
    is_training: bool,
) -> Proposals:
    """The proposals of one image.

    On each level the `topk` best anchors are decoded and clipped to the image. Of those whose sides
    are at least `MIN_SIZE`, non-maximum suppression within each level and over all levels keeps the
    `num_proposals` best.

    Args:
      predictions: objectness logits `[n_l 1]` and deltas `[n_l 4]` of each level.
      anchors: `[n_l 4]` for each level, xyxy in pixels.
      image_size: `[2]`, height and width in pixels.
      config: the numbers of anchors and proposals, and the overlap that is suppressed.
      is_training: which of its numbers count.

    Returns:
      `Proposals`; rows that are not valid hold zeros. An anchor with NaN in its logit or deltas is
      never proposed. Proposals are constants: no gradient flows to logits and deltas.

    Source: Ren et al., Faster R-CNN, 2015, section 3.3; Lin et al., Feature Pyramid Networks, 2017.
    """
    predictions = jax.lax.stop_gradient(predictions)
    topk = config.topk_train if is_training else config.topk_eval
    level_boxes, level_scores = [], []
    for logits, deltas, level in zip(
        predictions.cls_logits, predictions.deltas, anchors, strict=True
    ):
        best, rows = _best(logits[:, 0].astype(jnp.float32), topk)
        level_boxes.append(decode_boxes(deltas[rows], jnp.asarray(level, jnp.float32)[rows]))
        level_scores.append(jax.nn.sigmoid(best))
    counts = [scores.shape[0] for scores in level_scores]
    boxes, scores = jnp.concatenate(level_boxes), jnp.concatenate(level_scores)
    boxes = clip_boxes(boxes, image_size)
    # False where a coordinate is NaN, which is all that decoding and clipping leave of bad deltas.
    is_large = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE).all(axis=-1)
    kept = batched_nms(
        boxes,
        scores,
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        iou_threshold=config.nms_iou,
        max_outputs=config.num_proposals_train if is_training else config.num_proposals_eval,
        valid=is_large & (scores >= 0.0),
    )
    return Proposals(
        jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0),
        jnp.where(kept.valid, scores[kept.indices], 0.0),
        kept.valid,
    )


def _best(logits: Float[Array, " n"], topk: int) -> tuple[Array, Array]:
    """The best logits and their anchors, best first; NaN is worse than any number."""
    is_number = ~jnp.isnan(logits)
    logits = jnp.where(logits == 0.0, 0.0, logits)  # To top_k, -0 is less than 0.
    best, rows = jax.lax.top_k(jnp.where(is_number, logits, -jnp.inf), min(topk, logits.shape[0]))
    return jnp.where(is_number[rows], best, jnp.nan), rows
