"""The losses of HarmonicDet (Wang & Zhang, ICCV 2021, arXiv:2108.10809).

All of them are functions of per-sample quantities of positives, so that every factor belongs to
one sample: a batch mean never enters an exponential.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from harmonic_jax.losses._arguments import as_number, as_samples, check_choice, keep

_LARGEST_GAMMA = 100.0  # 2^gamma must be a number
FactorGradient = Literal["through", "stop", "cls_only"]
FactorSource = Literal["loss", "ce"]


def harmonic_loss(
    cls_loss: ArrayLike,
    loc_loss: ArrayLike,
    *,
    factor_gradient: FactorGradient = "through",
    where: ArrayLike | None = None,
) -> jax.Array:
    """Classification and localization loss, each weighted by how small the other one is.

    `(1 + exp(-loc_loss)) * cls_loss + (1 + exp(-cls_loss)) * loc_loss`

    Gradient, with C = cls_loss and L = loc_loss:

    - "through": d/dC = 1 + e^-L - L e^-C and d/dL = 1 + e^-C - C e^-L. A confident but badly
      placed box is made less confident (d/dC < 0 needs L > 1.2785), and a well placed but
      unconfident box is pushed away (d/dL < 0 needs C > 1.2785).
    - "stop": d/dC = 1 + e^-L and d/dL = 1 + e^-C; the factors are plain weights.
    - "cls_only": d/dC as in "through", d/dL as in "stop".

    Args:
      cls_loss: [*b] classification loss of each sample, >= 0.
      loc_loss: [*b] localization loss of each sample, summed over its coordinates, >= 0.
      factor_gradient: whether gradients flow through the factors, see above.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> loss = harmonic_loss(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0]))
      >>> [round(float(value), 3) for value in loss]  # 2 * 2, and 2 * (1 + 1/e)
      [4.0, 2.736]

    Source: arXiv:2108.10809, harmonic loss.
    """
    (cls_loss, loc_loss), mask = as_samples(where, cls_loss=cls_loss, loc_loss=loc_loss)
    check_choice("factor_gradient", factor_gradient, FactorGradient)
    return keep(mask, _harmonic(cls_loss, loc_loss, cls_loss, loc_loss, factor_gradient))


def _harmonic(
    cls_loss: jax.Array,
    loc_loss: jax.Array,
    cls_factor: jax.Array,
    loc_factor: jax.Array,
    mode: FactorGradient,
) -> jax.Array:
    """The harmonic loss whose factors are the exponentials of -cls_factor and -loc_factor."""
    beta_c = jnp.exp(-(stop_gradient(cls_factor) if mode == "stop" else cls_factor))
    beta_r = jnp.exp(-(loc_factor if mode == "through" else stop_gradient(loc_factor)))
    return (1 + beta_r) * cls_loss + (1 + beta_c) * loc_loss


def task_contrastive_loss(
    prob: ArrayLike,
    iou: ArrayLike,
    entropy: ArrayLike,
    *,
    margin: float = 0.2,
    factor_gradient: FactorGradient = "through",
    where: ArrayLike | None = None,
) -> jax.Array:
    """Distance of score and IoU beyond a margin; uncertain samples count less.

    `max(0, |prob - iou| - margin) / (1 + exp(entropy))`

    The gradient reaches `prob` always; the other two arguments by `factor_gradient`:

    - "through": both. An IoU above `prob + margin` is pushed down, and a higher entropy rewarded.
    - "stop": neither; the score alone moves, towards a constant IoU, with a constant weight.
    - "cls_only": the entropy but not the IoU, so the classification branch alone is moved.

    At the margin itself, and where score and IoU are equal, the gradient is 0.

    Args:
      prob: [*b] predicted probability of the true class, in [0, 1].
      iou: [*b] IoU of the predicted box and its ground truth, in [0, 1].
      entropy: [*b] entropy of the prediction in nats, >= 0: `softmax_entropy` of the logits, or
        for a sigmoid head `sigmoid_entropy` of one logit (never a sum over classes, which grows
        with their number).
      margin: difference that costs nothing, in [0, 1].
      factor_gradient: whether gradients flow through IoU and entropy, see above.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> prob, iou = jnp.array([0.9, 0.9]), jnp.array([0.8, 0.2])
      >>> loss = task_contrastive_loss(prob, iou, jnp.zeros(2))
      >>> [round(float(value), 3) for value in loss]  # within the margin, and 0.5 / 2
      [0.0, 0.25]

    Source: arXiv:2108.10809, task-contrastive loss.
    """
    (prob, iou, entropy), mask = as_samples(where, prob=prob, iou=iou, entropy=entropy)
    margin = as_number("margin", margin, 0.0, 1.0)
    check_choice("factor_gradient", factor_gradient, FactorGradient)
    return keep(mask, _task_contrastive(prob, iou, entropy, margin, factor_gradient))


def _task_contrastive(
    prob: jax.Array, iou: jax.Array, entropy: jax.Array, margin: float, mode: FactorGradient
) -> jax.Array:
    iou = iou if mode == "through" else stop_gradient(iou)
    entropy = stop_gradient(entropy) if mode == "stop" else entropy
    # 1 / (1 + exp(H)) = sigmoid(-H), which does not overflow.
    return jax.nn.sigmoid(-entropy) * jax.nn.relu(jnp.abs(prob - iou) - margin)


def harmonic_iou_loss(
    iou: ArrayLike, *, gamma: float = 0.8, where: ArrayLike | None = None
) -> jax.Array:
    """IoU loss that keeps more weight on boxes that are already good.

    `(1 + iou)**gamma * (1 - iou)`

    Its slope is `(1 + iou)**(gamma - 1) * ((gamma - 1) - (gamma + 1) * iou)`: for gamma <= 1 the
    loss falls with the IoU everywhere; above 1 it rises at first, which rewards a worse box.

    Args:
      iou: [*b] IoU of the predicted box and its ground truth, in [0, 1].
      gamma: exponent, in [0, 100]; 0 is the plain IoU loss, and up to 1 the loss is monotone.
      where: [*b] bool; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`.

    Example:
      >>> [round(float(value), 3) for value in harmonic_iou_loss(jnp.array([0.0, 0.5, 1.0]))]
      [1.0, 0.692, 0.0]

    Source: arXiv:2108.10809, harmonic IoU loss.
    """
    (iou,), mask = as_samples(where, iou=iou)
    gamma = as_number("gamma", gamma, 0.0, _LARGEST_GAMMA)
    return keep(mask, _harmonic_iou(iou, gamma))


def _harmonic_iou(iou: jax.Array, gamma: float) -> jax.Array:
    return (1 + iou) ** gamma * (1 - iou)


def hardet_loss(
    cls_loss: ArrayLike,
    smooth_l1: ArrayLike,
    prob: ArrayLike,
    iou: ArrayLike,
    entropy: ArrayLike,
    *,
    alpha: float = 1.5,
    gamma: float = 0.8,
    margin: float = 0.2,
    cls_weight: float = 1.0,
    box_weight: float = 1.0,
    factor_gradient: FactorGradient = "through",
    factor_source: FactorSource = "loss",
    cross_entropy: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The whole HarDet loss of a positive sample.

    ```
    loc   = smooth_l1 + alpha * harmonic_iou_loss(iou)
    total = (1 + exp(-loc)) * cls_loss + (1 + exp(-factor)) * loc
            + task_contrastive_loss(prob, iou, entropy)
    ```

    `cls_weight` multiplies cls_loss, and `box_weight` smooth_l1, where they are terms, not in the
    exponents: the factors are those of the unweighted losses. A loss that comes in weighted has
    another factor.

    `factor` is `cls_loss` with factor_source="loss" and `cross_entropy` with "ce". The second is
    for focal heads: the focal loss of a sample is small at almost any score, so exp(-focal) is
    nearly 1 for all, whereas exp(-cross_entropy) is the score itself. `cls_loss` stays the
    weighted term in both.

    A negative's loss is its classification loss alone. The caller adds those, sums, and divides
    by the number of positives.

    Gradient: `smooth_l1` and `iou` are trained through `loc` in every mode; `factor_gradient`
    acts on both factors and on IoU and entropy of the task-contrastive loss, as described there.

    Args:
      cls_loss: [*b] classification loss of each sample, >= 0; a focal loss summed over classes.
      smooth_l1: [*b] SmoothL1 of each sample, summed over the 4 coordinates, >= 0.
      prob: [*b] predicted probability of the true class, in [0, 1].
      iou: [*b] IoU of the predicted box and its ground truth, in [0, 1].
      entropy: [*b] entropy of the prediction in nats, see `task_contrastive_loss`.
      alpha: weight of the harmonic IoU loss, >= 0.
      gamma: exponent of the harmonic IoU loss, >= 0; monotone up to 1.
      margin: difference of score and IoU that costs nothing, in [0, 1].
      cls_weight: weight of cls_loss in the sum, >= 0.
      box_weight: weight of smooth_l1 in the sum, >= 0.
      factor_gradient: whether gradients flow through the factors: "through", "stop", "cls_only".
      factor_source: what the classification factor is computed from: "loss" or "ce".
      cross_entropy: [*b] cross entropy of the true class, -log(prob) >= 0, computed from the
        logits (`jax.nn.softplus(-logit)` for a sigmoid); with factor_source="ce", and only then.
      where: [*b] bool, True for positives; value and gradient are exactly 0 where it is False.

    Returns:
      [*b] loss of each sample, float32 (float64 for float64 inputs).

    Raises: as every loss, see `harmonic_jax.losses`; ValueError too if `cross_entropy` is missing
      with factor_source="ce" or given with "loss".

    Example:
      >>> cls_loss, smooth_l1 = jnp.array([0.095]), jnp.array([0.8])
      >>> prob, iou, entropy = jnp.array([0.909]), jnp.array([0.4]), jnp.array([0.367])
      >>> [round(float(loss), 2) for loss in hardet_loss(cls_loss, smooth_l1, prob, iou, entropy)]
      [4.01]

    Source: arXiv:2108.10809; the options are those on which re-implementations disagree.
    """
    alpha, gamma = as_number("alpha", alpha, 0.0), as_number("gamma", gamma, 0.0, _LARGEST_GAMMA)
    margin = as_number("margin", margin, 0.0, 1.0)
    cls_weight = as_number("cls_weight", cls_weight, 0.0)
    box_weight = as_number("box_weight", box_weight, 0.0)
    check_choice("factor_gradient", factor_gradient, FactorGradient)
    check_choice("factor_source", factor_source, FactorSource)
    if (factor_source == "ce") != (cross_entropy is not None):
        state = "missing" if cross_entropy is None else "given"
        raise ValueError(
            f"cross_entropy is {state} with factor_source {factor_source!r}; "
            "it must be an array with 'ce' and None with 'loss'"
        )
    (cls_loss, smooth_l1, prob, iou, entropy, cls_factor), mask = as_samples(
        where,
        cls_loss=cls_loss,
        smooth_l1=smooth_l1,
        prob=prob,
        iou=iou,
        entropy=entropy,
        cross_entropy=cls_loss if cross_entropy is None else cross_entropy,
    )
    hiou_loss = alpha * _harmonic_iou(iou, gamma)
    loc_loss, loc_factor = box_weight * smooth_l1 + hiou_loss, smooth_l1 + hiou_loss
    total = _harmonic(cls_weight * cls_loss, loc_loss, cls_factor, loc_factor, factor_gradient)
    return keep(mask, total + _task_contrastive(prob, iou, entropy, margin, factor_gradient))
