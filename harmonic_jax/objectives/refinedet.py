"""The objective of RefineDet: anchors are refined by one module, detected on by the next."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from harmonic_jax.assign.default_boxes import BOX_WEIGHTS
from harmonic_jax.assign.multibox_matcher import multibox_targets
from harmonic_jax.config import LossConfig, MultiBoxMatchConfig
from harmonic_jax.objectives.multibox import multibox_objective, multibox_sums
from harmonic_jax.objectives.sums import LossSums, join_groups
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.structures import GroundTruth, Predictions, Targets


def refinedet_objective(
    arm: Predictions,
    odm: Predictions,
    anchors: tuple[Float[Array, "n 4"], ...],
    ground_truth: GroundTruth,
    is_real: Bool[Array, " b"],
    *,
    loss: LossConfig,
    match: MultiBoxMatchConfig,
    min_objectness: float,
    batch_axis: str | None = None,
) -> LossSums:
    """The losses of both modules, each with its own assignment and number of positives.

    loss = ARM / N_arm + ODM / N_odm

    The ARM has SSD's baseline loss with a single class, object. The ODM has SSD's loss (HarDet
    where the config asks for it) on the anchors that the ARM moved, which are constants here: no
    gradient of the ODM's losses reaches the ARM's outputs. A refined anchor that matches no
    object and to which the ARM gives less than `min_objectness` is no negative.

    Args:
      arm: raw outputs, [b, n_l, 2] (object, background) and [b, n_l, 4] a level.
      odm: raw outputs, [b, n_l, k + 1] (background last) and [b, n_l, 4] a level.
      anchors: [n_l, 4] a level, xyxy pixels.
      ground_truth: [b, g] padded objects.
      is_real: [b], False for slots that only fill the batch.
      loss: which losses, and their constants.
      match: thresholds of both assignments.
      min_objectness: in [0, 1).
      batch_axis: as in `join_groups`.

    Returns:
      Sums over the batch, to be divided by the real images; `num_positive` is the ODM's.

    Source: Zhang et al., RefineDet, 2018, section 3.
    """
    arm_sums = multibox_objective(
        arm,
        anchors,
        dataclasses.replace(ground_truth, labels=jnp.zeros_like(ground_truth.labels)),
        is_real,
        loss=dataclasses.replace(loss, hardet=False),
        match=match,
    )
    refined, objectness = stop_gradient(refine_anchors(arm, anchors))
    cls_logits = jnp.concatenate(odm.cls_logits, axis=1)

    def assign(boxes: Array, truth: GroundTruth) -> Targets:
        return multibox_targets(
            boxes, truth, num_classes=cls_logits.shape[-1] - 1, positive_iou=match.positive_iou
        )

    targets = jax.vmap(assign)(refined, ground_truth)
    is_counted = (targets.is_positive | (objectness >= min_objectness)) & is_real[:, None]
    odm_sums = multibox_sums(
        cls_logits,
        jnp.concatenate(odm.deltas, axis=1),
        refined,
        dataclasses.replace(targets, is_counted=is_counted),
        loss=loss,
        negative_ratio=match.negative_ratio,
    )
    names = {"cls_loss": "arm_cls_loss", "box_loss": "arm_box_loss"}
    terms = {names[name]: value for name, value in arm_sums.terms.items() if name in names}
    return join_groups(
        [dataclasses.replace(arm_sums, terms=terms), odm_sums], is_real, batch_axis=batch_axis
    )


def refine_anchors(
    arm: Predictions, anchors: tuple[Float[Array, "n 4"], ...]
) -> tuple[Float[Array, "b n 4"], Float[Array, "b n"]]:
    """The anchors of all levels as the ARM moves them, and the objectness it gives them.

    Args:
      arm: raw outputs, [b, n_l, 2] (object, background) and [b, n_l, 4] a level.
      anchors: [n_l, 4] a level, xyxy pixels.

    Returns:
      [b, n, 4] xyxy pixels, not clipped to the image; [b, n] in [0, 1].
    """
    deltas = jnp.concatenate(arm.deltas, axis=1)
    all_anchors = jnp.broadcast_to(jnp.concatenate(anchors), deltas.shape)
    logits = jnp.concatenate(arm.cls_logits, axis=1)
    return (
        decode_boxes(deltas, all_anchors, weights=BOX_WEIGHTS),
        jax.nn.softmax(logits, axis=-1)[..., 0],
    )
