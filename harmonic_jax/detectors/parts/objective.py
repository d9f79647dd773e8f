"""What a detector minimises: the settings of its losses, and sums that are divided once.

Sums and what they are divided by are kept apart, so that a batch processed in parts and a batch
sharded over devices give the gradient of the whole.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.checks import check_fields, require

ClsLoss = Literal[
    "focal", "quality_focal", "varifocal", "ia_bce", "mal", "position",
    "task_aligned", "iou_balanced", "isr",
]  # fmt: skip
BoxLoss = Literal[
    "smooth_l1", "giou", "diou", "ciou", "eiou", "task_aligned", "iou_balanced", "carl"
]

# These weigh a sample by what the others of its batch or object do.
_WEIGHTED = ("position", "task_aligned", "iou_balanced", "isr", "carl")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Focal loss and SmoothL1, joined by HarDet where `hardet` is set; RetinaNet has others."""

    hardet: bool = True
    """The Harmonic, task-contrastive and Harmonic IoU losses; off: the plain baseline."""
    alpha: Annotated[float, "[0, 1000]"] = 1.5
    """Weight of the Harmonic IoU loss."""
    gamma: Annotated[float, "[0, 1]"] = 0.8
    """Exponent of the Harmonic IoU loss; above 1 it is not monotone in the IoU."""
    margin: Annotated[float, "[0, 1]"] = 0.2
    """Difference of score and IoU that the task-contrastive loss forgives."""
    factor_gradient: losses.FactorGradient = "through"
    factor_source: losses.FactorSource = "loss"
    cls_loss: ClsLoss = "focal"
    """Of RetinaNet and RT-DETR. `isr` and `iou_balanced` weigh the focal loss of
    positives; like `position` and `task_aligned` they need `hardet` off, and RetinaNet."""
    focal_alpha: Annotated[float, "[0, 1]"] = 0.25
    """Weight of the true class; 1 - focal_alpha is that of the others, and of varifocal's."""
    focal_gamma: Annotated[float, "[0, 100]"] = 2.0
    """Focusing exponent, also of the losses in the focal loss's place; 1.5 in `mal`'s source."""
    box_loss: BoxLoss = "smooth_l1"
    """RetinaNet's localization loss; torchvision's v2 has `giou`, its first version SmoothL1 with
    beta 0, which is L1. `iou_balanced` and `carl` weigh SmoothL1, `task_aligned` GIoU."""
    smooth_l1_beta: Annotated[float, "[0, 1000]"] = 0.11
    """Where SmoothL1's parabola ends; 0 is L1."""
    cls_weight: Annotated[float, "[0, 1000]"] = 1.0
    """Weight of the classification loss, of positives and negatives, but for that of a region
    proposal network; HarDet has it not in its factors."""
    box_weight: Annotated[float, "[0, 1000]"] = 1.0
    """Weight of the localization loss; HarDet has it on SmoothL1, and not in its factors."""
    correlation: Literal["none", "concordance", "pearson"] = "none"
    """RetinaNet: adds 1 - the correlation of the positives' scores and IoUs (`hardet` off)."""
    correlation_weight: Annotated[float, "[0, 1000]"] = 0.2

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        if not self.hardet:
            return
        instead = "with hardet (--loss.no-hardet to compare with it)"
        for field in ("cls_loss", "box_loss"):
            value = getattr(self, field)
            legal = f"a loss of single samples, none of {', '.join(_WEIGHTED)}, {instead}"
            require(value not in _WEIGHTED, f"loss.{field}", value, legal)
        require(self.correlation == "none", "loss.correlation", self.correlation, f"none {instead}")

    @property
    def is_weighted(self) -> bool:
        """Whether a sample's loss depends on other samples."""
        chosen = {self.cls_loss, self.box_loss}
        return not chosen.isdisjoint(_WEIGHTED) or self.correlation != "none"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over all samples of a batch; `add` joins the parts of one batch.

    Attributes:
      total: float32 scalar, what is minimised, not yet divided.
      terms: float32 scalars by name, for logs; each a sum over samples.
      normalizer: float32 scalar; the loss is total / max(normalizer, 1).
      num_positive: float32 scalar, for logs.
    """

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    normalizer: Float[Array, ""]
    num_positive: Float[Array, ""]

    def add(self, other: "LossSums") -> "LossSums":
        return jax.tree.map(jnp.add, self, other)

    def scale(self) -> Float[Array, ""]:
        """1 / max(normalizer, 1): times a gradient of `total`, that of the loss."""
        return 1.0 / jnp.maximum(self.normalizer, 1.0)

    def normalized(self) -> dict[str, Float[Array, ""]]:
        """`loss` and every term, divided by max(normalizer, 1)."""
        scale = self.scale()
        return {"loss": self.total * scale} | {k: v * scale for k, v in self.terms.items()}


def masked(values: Float[Array, "*b"], is_sample: Bool[Array, "*s"]) -> Float[Array, "*b"]:
    """`values` [*s, ...] with zeros where `is_sample` [*s] is False: whatever stands there, no sum
    and no gradient sees it."""
    expanded = is_sample.reshape(is_sample.shape + (1,) * (values.ndim - is_sample.ndim))
    return jnp.where(expanded, values, 0.0)


def sample_sums(
    cls_loss: Float[Array, "*n"],
    box_loss: Float[Array, "*n"],
    prob: Float[Array, "*n"],
    iou: Float[Array, "*n"],
    entropy: Float[Array, "*n"],
    *,
    cross_entropy: Float[Array, "*n"],
    positive: Bool[Array, "*n"],
    negative: Bool[Array, "*n"],
    loss: LossConfig,
) -> LossSums:
    """The losses of the samples of every detector's last head, to be divided by the positives.

    A positive contributes the HarDet loss with `loss.hardet`, cls_weight * cls_loss + box_weight *
    box_loss without; a negative cls_weight * cls_loss; any other nothing, whatever its numbers are.

    Args:
      cls_loss: classification loss, as the head is trained, not weighted.
      box_loss: localization loss, not weighted: HarDet's factor comes from it.
      prob: predicted probability of the true class.
      iou: of the decoded box with its object.
      entropy: of the class distribution.
      cross_entropy: of the true class; what `loss.factor_source = "ce"` asks for.
      positive, negative: which samples are.
      loss: which losses, and their constants.

    Returns:
      Their sum, with the terms `cls_loss` and `box_loss`; for the log `positive_score` and
      `positive_iou`, and with HarDet `hiou_loss` and `tc_loss`.
    """
    num_positive = positive.sum(dtype=jnp.float32)
    terms = {
        "cls_loss": masked(loss.cls_weight * cls_loss, positive | negative).sum(),
        "box_loss": masked(loss.box_weight * box_loss, positive).sum(),
        "positive_score": masked(prob, positive).sum(),
        "positive_iou": masked(iou, positive).sum(),
    }
    if loss.hardet:
        per_positive = losses.hardet_loss(
            cls_loss,
            box_loss,
            prob,
            iou,
            entropy,
            alpha=loss.alpha,
            gamma=loss.gamma,
            margin=loss.margin,
            cls_weight=loss.cls_weight,
            box_weight=loss.box_weight,
            factor_gradient=loss.factor_gradient,
            factor_source=loss.factor_source,
            cross_entropy=cross_entropy if loss.factor_source == "ce" else None,
            where=positive,
        )
        # Evaluated again for the log only: the compiler shares the work with hardet_loss.
        hiou = losses.harmonic_iou_loss(iou, gamma=loss.gamma, where=positive)
        tc = losses.task_contrastive_loss(prob, iou, entropy, margin=loss.margin, where=positive)
        terms |= {"hiou_loss": hiou.sum(), "tc_loss": tc.sum()}
    else:
        per_positive = masked(loss.cls_weight * cls_loss + loss.box_weight * box_loss, positive)
    total = per_positive.sum() + masked(loss.cls_weight * cls_loss, negative).sum()
    return LossSums(total, terms, normalizer=num_positive, num_positive=num_positive)


def join_groups(
    groups: Sequence[LossSums], is_real: Bool[Array, " b"], *, batch_axis: str | None = None
) -> LossSums:
    """Groups of samples with normalizers of their own (anchors, RoIs, masks) as one.

    loss = sum_g total_g / max(normalizer_g, 1)

    Each group is multiplied by the number of real images, which becomes the common normalizer.
    The parts of a batch that is processed in parts are divided by counts of their own: their
    sum is the whole batch's gradient as far as those counts are proportional to the images.

    Args:
      groups: sums over the same batch, with different terms.
      is_real: [b], False for slots that only fill the batch.
      batch_axis: within `jax.shard_map`, the mesh axis that splits the batch: the normalizers are
        then those of all devices, and the sums returned are this device's share.

    Returns:
      Their sum; `num_positive` is that of the last group.
    """
    own_images = is_real.sum(dtype=jnp.float32)
    counts = jnp.stack([own_images, *(group.normalizer for group in groups)])
    if batch_axis is not None:
        counts = jax.lax.psum(counts, batch_axis)
    weights = counts[0] / jnp.maximum(counts[1:], 1.0)
    weighted = list(zip(groups, weights, strict=True))
    total = sum((g.total * weight for g, weight in weighted), jnp.zeros((), jnp.float32))
    terms = {k: v * weight for g, weight in weighted for k, v in g.terms.items()}
    return LossSums(total, terms, own_images, groups[-1].num_positive)
