"""The losses and their constants."""

import dataclasses
from typing import Literal

from harmonic_jax.config.checks import check_choices, require

FactorGradient = Literal["through", "stop", "cls_only"]
FactorSource = Literal["loss", "ce"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Focal loss and SmoothL1, joined by HarDet where `hardet` is set."""

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
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """RetinaNet's localization loss; torchvision's v2 has `giou`, its first version SmoothL1 with
    beta 0, which is L1."""
    smooth_l1_beta: float = 0.11
    box_weight: float = 1.0
    """Weight of the localization loss of the baseline; HarDet uses it on SmoothL1 too."""

    def __post_init__(self) -> None:
        check_choices(self, "loss")
        for field in ("alpha", "focal_gamma", "smooth_l1_beta", "box_weight"):
            value = getattr(self, field)
            require(value >= 0.0, f"loss.{field}", value, ">= 0")
        require(0.0 <= self.gamma <= 1.0, "loss.gamma", self.gamma, "in [0, 1]")
        require(0.0 <= self.margin <= 1.0, "loss.margin", self.margin, "in [0, 1]")
        require(0.0 <= self.focal_alpha <= 1.0, "loss.focal_alpha", self.focal_alpha, "in [0, 1]")
