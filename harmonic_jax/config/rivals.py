"""Losses to compare HarDet with, by the name they have in the literature."""

from harmonic_jax.config.loss import LossConfig

RIVALS: dict[str, LossConfig] = {
    "focal": LossConfig(hardet=False),
    "gfl": LossConfig(hardet=False, cls_loss="quality_focal", box_loss="giou", box_weight=2.0),
    "vfl": LossConfig(hardet=False, cls_loss="varifocal", box_loss="giou", box_weight=1.5),
    "tood": LossConfig(
        hardet=False, cls_loss="task_aligned", box_loss="task_aligned", box_weight=2.0
    ),
    "iou_balanced": LossConfig(hardet=False, cls_loss="iou_balanced", box_loss="iou_balanced"),
    "pisa": LossConfig(hardet=False, cls_loss="isr", box_loss="carl"),
    "correlation": LossConfig(hardet=False, correlation="concordance"),
    "giou": LossConfig(hardet=False, box_loss="giou", box_weight=2.0),
    "diou": LossConfig(hardet=False, box_loss="diou", box_weight=2.0),
    "ciou": LossConfig(hardet=False, box_loss="ciou", box_weight=2.0),
    "eiou": LossConfig(hardet=False, box_loss="eiou", box_weight=2.0),
}
"""For a config file: `loss=RIVALS["gfl"]`. Of each method the losses only: its own assignment of
anchors, heads and schedules are left out, so that the losses alone are compared. The weights of
the box losses are those of the methods' published configurations where there is one, and 2 for
the others of the IoU family; none was tuned here."""
