"""The field's other answers to scores and boxes that disagree, to compare HarDet with.

Functions under the same rules as `harmonic_jax.losses`: pure, one value a sample, never reduced;
`where=` gives value and gradient exactly 0. Some weigh a sample by statistics of the whole batch
(IoU-balanced, PISA) or are one number for it (`correlation_loss`): these take `axis_name`, the
axis over whose devices the statistics are summed.
"""

from harmonic_jax.losses.rivals.batch_weights import (
    Correlation,
    carl_loss,
    correlation_loss,
    iou_balanced_cls_loss,
    iou_balanced_loc_loss,
    isr_loss,
)
from harmonic_jax.losses.rivals.localization import inner_iou_loss, nwd_loss
from harmonic_jax.losses.rivals.soft_targets import (
    ia_bce_loss,
    matchability_aware_loss,
    position_supervised_loss,
    quality_focal_loss,
    task_alignment,
    varifocal_loss,
)

__all__ = [
    "Correlation",
    "carl_loss",
    "correlation_loss",
    "ia_bce_loss",
    "inner_iou_loss",
    "iou_balanced_cls_loss",
    "iou_balanced_loc_loss",
    "isr_loss",
    "matchability_aware_loss",
    "nwd_loss",
    "position_supervised_loss",
    "quality_focal_loss",
    "task_alignment",
    "varifocal_loss",
]
