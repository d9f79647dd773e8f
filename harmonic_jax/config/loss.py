"""The losses and their constants."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields, require

FactorGradient = Literal["through", "stop", "cls_only"]
FactorSource = Literal["loss", "ce"]
ClsLoss = Literal["focal", "quality_focal", "varifocal", "task_aligned", "iou_balanced", "isr"]
BoxLoss = Literal[
    "smooth_l1", "giou", "diou", "ciou", "eiou", "task_aligned", "iou_balanced", "carl"
]

# These weigh a sample by what the others of its batch or object do.
_WEIGHTED = ("task_aligned", "iou_balanced", "isr", "carl")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Focal loss and SmoothL1, joined by HarDet where `hardet` is set; RetinaNet has others."""

    hardet: bool = True
    """The Harmonic, task-contrastive and Harmonic IoU losses; off: the plain baseline."""
    alpha: float = 1.5
    """Weight of the Harmonic IoU loss."""
    gamma: float = 0.8
    """Exponent of the Harmonic IoU loss; above 1 it is not monotone in the IoU."""
    margin: float = 0.2
    """Difference of score and IoU that the task-contrastive loss forgives."""
    factor_gradient: FactorGradient = "through"
    factor_source: FactorSource = "loss"
    cls_loss: ClsLoss = "focal"
    """RetinaNet's classification loss; any but `focal` replaces HarDet (`hardet` off). `isr` and
    `iou_balanced` weigh the focal loss of positives."""
    focal_alpha: float = 0.25
    """Weight of the true class; 1 - focal_alpha is that of the others, and of varifocal's."""
    focal_gamma: float = 2.0
    """Focusing exponent, also of the quality focal, varifocal and task-aligned losses."""
    box_loss: BoxLoss = "smooth_l1"
    """RetinaNet's localization loss; torchvision's v2 has `giou`, its first version SmoothL1 with
    beta 0, which is L1. `iou_balanced` and `carl` weigh SmoothL1, `task_aligned` GIoU."""
    smooth_l1_beta: float = 0.11
    """Where SmoothL1's parabola ends."""
    box_weight: float = 1.0
    """Weight of the localization loss; HarDet has it on SmoothL1, and not in its factors."""
    correlation: Literal["none", "concordance", "pearson"] = "none"
    """RetinaNet: adds 1 - the correlation of the positives' scores and IoUs (`hardet` off)."""
    correlation_weight: float = 0.2

    def __post_init__(self) -> None:
        check_fields(
            self,
            "loss",
            alpha="[0, 1000]",
            gamma="[0, 1]",
            margin="[0, 1]",
            focal_alpha="[0, 1]",
            focal_gamma="[0, 100]",
            smooth_l1_beta="[0, 1000]",
            box_weight="[0, 1000]",
            correlation_weight="[0, 1000]",
        )
        if self.hardet:
            self._check_hardet()

    def _check_hardet(self) -> None:
        instead = "with hardet (--loss.no-hardet to compare with it)"
        require(self.cls_loss == "focal", "loss.cls_loss", self.cls_loss, f"focal {instead}")
        require(
            self.box_loss not in _WEIGHTED,
            "loss.box_loss",
            self.box_loss,
            f"a loss of single samples, none of {', '.join(_WEIGHTED)}, {instead}",
        )
        require(self.correlation == "none", "loss.correlation", self.correlation, f"none {instead}")

    @property
    def is_weighted(self) -> bool:
        """Whether a sample's loss depends on other samples."""
        chosen = {self.cls_loss, self.box_loss}
        return not chosen.isdisjoint(_WEIGHTED) or self.correlation != "none"
