"""Side by side with torchvision, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import losses
from tests.losses.every import valid_pairs
from tests.ops.peers import torchvision_or_skip

LOGITS = np.random.default_rng(0).normal(0, 4, (40, 7))
LABELS = np.random.default_rng(1).integers(-1, 8, 40)  # -1 and 7: background
ONE_HOT = (LABELS[:, None] == np.arange(7)).astype(np.float64)


def compare(ours, theirs, arrays, rtol):
    """Values, and gradients of the sum, in float64."""
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = theirs(*tensors)
    expected.sum().backward()
    with jax.enable_x64(True):
        value, pull = jax.vjp(jax.jit(ours), *(jnp.asarray(array) for array in arrays))
        grads = pull(jnp.ones_like(value))
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=rtol, atol=rtol)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.5), (0.6, 0.0)])
def test_focal_loss_equals_torchvision(alpha, gamma):
    torch, torchvision = torchvision_or_skip()
    ops = torchvision.ops
    target, theirs = torch.tensor(ONE_HOT), -1 if alpha is None else alpha
    compare(
        lambda x: losses.sigmoid_focal_loss(x, LABELS, alpha=alpha, gamma=gamma),
        lambda x: ops.sigmoid_focal_loss(x, target, theirs, gamma),
        [LOGITS],
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou", "smooth_l1"])
def test_box_losses_equal_torchvision(name):
    """Up to torchvision's 1e-7 in every denominator, on boxes of at least one pixel."""
    torch, torchvision = torchvision_or_skip()
    ops = torchvision.ops
    theirs = {
        "iou": lambda a, b: 1 - ops.box_iou(a, b).diagonal(),
        "giou": ops.generalized_box_iou_loss,
        "diou": ops.distance_box_iou_loss,
        "ciou": ops.complete_box_iou_loss,
        "smooth_l1": lambda a, b: torch.nn.functional.smooth_l1_loss(a, b, reduction="none").sum(1),
    }[name]
    compare(getattr(losses, f"{name}_loss"), theirs, valid_pairs(100), rtol=2e-7)
