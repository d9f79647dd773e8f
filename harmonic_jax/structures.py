"""The pytrees that flow through the library, in the order in which they appear.

`Batch` -> model -> `Predictions` -> (with `Targets`) losses
                               \\-> postprocess -> `Detections`

Boxes are float32 xyxy in absolute pixels of the padded image, with x2 = x1 + width (no +1).
Dimension letters: b batch, h w c image, n anchors of one level, g padded ground truths,
k classes, d detections, m s sides of mask grids, *b any batch.
"""

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObjectMasks:
    """Instance masks, each on a grid over a box of its own.

    The frame is the object's box before any crop: it moves and scales with the image but may
    reach outside of it, so the grid never has to be drawn anew.
    """

    values: UInt8[Array, "*b g m m"]  # coverage of a cell, 0..255
    frames: Float[Array, "*b g 4"]  # xyxy in pixels of the padded image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Objects of an image, padded to a fixed number. Rows where `valid` is False mean nothing."""

    boxes: Float[Array, "*b g 4"]
    labels: Int[Array, "*b g"]  # 0..k-1
    valid: Bool[Array, "*b g"]
    masks: ObjectMasks | None = None  # where the detector predicts masks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What the loader yields: numpy on the host, device arrays inside the step.

    The image occupies the top-left `image_size` of the padded canvas; the rest is padding.
    `scale` is (network height / original height, network width / original width): dividing a
    box by it gives pixels of the original file. `is_real` is False for a slot that only fills
    the batch (the tail of an evaluation, or an image that could not be decoded): it has no
    ground truth and takes no part in any loss or metric.
    """

    images: UInt8[Array, "b h w 3"]  # RGB
    image_size: Float[Array, "b 2"]  # height, width
    scale: Float[Array, "b 2"]  # y, x
    record_index: Int[Array, " b"]  # position in the source's records
    is_real: Bool[Array, " b"]
    ground_truth: GroundTruth


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a dense detector says, one entry a pyramid level, finest first.

    Levels stay apart: the losses and the selection of candidates work level by level, and
    concatenating 120k anchors times 80 classes would copy them.
    """

    cls_logits: tuple[Float[Array, "*b n k"], ...]  # softmax heads: k + 1, background last
    deltas: tuple[Float[Array, "*b n 4"], ...]  # regression output, see ops.box_coder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What each anchor of one level should say; made from a matching."""

    labels: Int[Array, "*b n"]  # 0..k-1 where positive, k elsewhere (background)
    boxes: Float[Array, "*b n 4"]  # the matched box; the anchor itself where not positive
    is_positive: Bool[Array, "*b n"]
    is_counted: Bool[Array, "*b n"]  # False: ignored by the classification loss too


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
    """Final boxes of an image, best first, padded to a fixed number."""

    boxes: Float[Array, "*b d 4"]
    scores: Float[Array, "*b d"]
    labels: Int[Array, "*b d"]
    valid: Bool[Array, "*b d"]
    masks: Float[Array, "*b d s s"] | None = None  # probabilities on a grid over the box
