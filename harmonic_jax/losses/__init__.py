"""Detection losses: pure functions of arrays, one value a sample, never reduced.

They know nothing of anchors, configurations or batches, and need jax alone. Inputs of lower
precision are computed in float32 (float64 stays float64); `where=` gives value and gradient
exactly 0 where it is False, whatever stands there. Shapes must be equal: nothing broadcasts.

A wrong call fails while it is traced: with TypeError where an array is not floating point (labels
and objects: integers, `where`: bool) or an option no number, with ValueError where shapes do not
fit or an option is out of its range. The message names the argument and what is legal.
"""

from harmonic_jax.losses.classification import (
    mask_loss,
    sigmoid_cross_entropy,
    sigmoid_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_entropy,
)
from harmonic_jax.losses.harmonic import (
    FactorGradient,
    FactorSource,
    hardet_loss,
    harmonic_iou_loss,
    harmonic_loss,
    task_contrastive_loss,
)
from harmonic_jax.losses.localization import (
    aligned_iou,
    ciou_loss,
    diou_loss,
    eiou_loss,
    giou_loss,
    iou_loss,
    smooth_l1_loss,
)

__all__ = [
    "FactorGradient",
    "FactorSource",
    "aligned_iou",
    "ciou_loss",
    "diou_loss",
    "eiou_loss",
    "giou_loss",
    "hardet_loss",
    "harmonic_iou_loss",
    "harmonic_loss",
    "iou_loss",
    "mask_loss",
    "sigmoid_cross_entropy",
    "sigmoid_entropy",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "softmax_cross_entropy",
    "softmax_entropy",
    "task_contrastive_loss",
]
