"""What losses promise beside tests/losses/test_every_function.py: errors that name the argument,
and that a batch on several devices needs no communication."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from harmonic_jax import losses
from harmonic_jax.losses import rivals

V, M = jnp.ones(3), jnp.ones((3, 4))
I3 = jnp.zeros(3, jnp.int32)
WRONG = [
    ("harmonic_loss", (I3, V), {}, TypeError, "cls_loss has dtype int32"),
    ("harmonic_loss", (V, None), {}, TypeError, "loc_loss is a NoneType"),
    ("harmonic_loss", (V, V[:, None]), {}, ValueError, r"loc_loss has shape \(3, 1\)"),
    ("harmonic_loss", (V, V), {"factor_gradient": "both"}, ValueError, "factor_gradient is 'both'"),
    ("harmonic_loss", (V, V), {"where": V[:2] > 0}, ValueError, r"where has shape \(2,\)"),
    ("task_contrastive_loss", (V, V, M), {}, ValueError, r"entropy has shape \(3, 4\)"),
    ("task_contrastive_loss", (V, V, V), {"margin": "0.2"}, TypeError, "margin is a str"),
    ("harmonic_iou_loss", (V,), {"gamma": float("nan")}, ValueError, "gamma is nan"),
    ("harmonic_iou_loss", (V,), {"gamma": 130}, ValueError, "gamma is 130"),
    ("harmonic_iou_loss", (V,), {"gamma": True}, TypeError, "gamma is a bool"),
    ("hardet_loss", (V, V, V[:2], V, V), {}, ValueError, r"prob has shape \(2,\)"),
    ("hardet_loss", (V,) * 5, {"alpha": -1}, ValueError, "alpha is -1"),
    ("hardet_loss", (V,) * 5, {"factor_source": "CE"}, ValueError, "factor_source is 'CE'"),
    ("hardet_loss", (V,) * 5, {"factor_source": "ce"}, ValueError, "cross_entropy is missing"),
    ("hardet_loss", (V,) * 5, {"cross_entropy": V}, ValueError, "cross_entropy is given"),
    (
        "hardet_loss", (V,) * 5, {"factor_source": "ce", "cross_entropy": M},
        ValueError, r"cross_entropy has shape \(3, 4\)",
    ),
    ("softmax_entropy", (I3,), {}, TypeError, "logits has dtype int32"),
    ("softmax_entropy", (M[:, :0],), {}, ValueError, r"logits has shape \(3, 0\)"),
    ("sigmoid_entropy", (I3,), {}, TypeError, "logits has dtype int32"),
    ("softmax_cross_entropy", (M, V), {}, TypeError, "labels has dtype float32"),
    ("softmax_cross_entropy", (M, I3[:2]), {}, ValueError, r"labels has shape \(2,\)"),
    ("sigmoid_focal_loss", (M, I3), {"alpha": -1}, ValueError, "alpha .* is -1"),
    ("smooth_l1_loss", (M, V), {}, ValueError, r"target has shape \(3,\)"),
    ("smooth_l1_loss", (V.sum(), V.sum()), {}, ValueError, r"pred has shape \(\)"),
    ("aligned_iou", (M[:, :3], M[:, :3]), {}, ValueError, r"pred has shape \(3, 3\)"),
    ("iou_loss", (M, M[:1]), {}, ValueError, r"target has shape \(1, 4\)"),
    ("diou_loss", (M, "boxes"), {}, TypeError, "target is a str"),
    ("ciou_loss", (M, M), {"where": M > 0}, ValueError, r"where has shape \(3, 4\)"),
    ("mask_loss", (V, V), {}, ValueError, r"logits has shape \(3,\)"),
    ("quality_focal_loss", (M, I3, V[:2]), {}, ValueError, r"quality has shape \(2,\)"),
    ("quality_focal_loss", (M, I3, V), {"beta": -1}, ValueError, "beta is -1"),
    ("varifocal_loss", (M, I3, V), {"where": V}, TypeError, "where has dtype float32"),
    ("ia_bce_loss", (M, I3, V), {"alpha": 2}, ValueError, "alpha is 2"),
    ("ia_bce_loss", (M, I3, V), {"gamma": -1}, ValueError, "gamma is -1"),
    ("matchability_aware_loss", (M, V, V), {}, TypeError, "labels has dtype float32"),
    ("matchability_aware_loss", (M, I3, V), {"gamma": V}, TypeError, "gamma is a"),
    ("position_supervised_loss", (M, I3, M), {}, ValueError, r"quality has shape \(3, 4\)"),
    ("position_supervised_loss", (M, I3, I3), {}, TypeError, "quality has dtype int32"),
    ("position_supervised_loss", (M, I3, V), {"gamma": -1}, ValueError, "gamma is -1"),
    ("inner_iou_loss", (M, M), {"ratio": 0}, ValueError, "ratio is 0"),
    ("inner_iou_loss", (M[:, :3], M[:, :3]), {"ratio": 1}, ValueError, r"pred has shape \(3, 3\)"),
    ("nwd_loss", (M, M), {"constant": 0.0}, ValueError, "constant is 0.0"),
    ("nwd_loss", (M[:, :3], M[:, :3]), {"constant": 1}, ValueError, r"pred has shape \(3, 3\)"),
    ("task_alignment", (M, M, I3), {"num_objects": 2}, ValueError, r"prob has shape \(3, 4\)"),
    ("iou_balanced_cls_loss", (V, M), {}, ValueError, r"iou has shape \(3, 4\)"),
    ("iou_balanced_loc_loss", (V, V), {"exponent": "1"}, TypeError, "exponent is a str"),
    ("isr_loss", (V, V, I3, I3), {"bias": 2}, ValueError, "bias is 2"),
    ("carl_loss", (V, I3), {}, TypeError, "loc_loss has dtype int32"),
    ("correlation_loss", (V, V), {"kind": "spearman"}, ValueError, "kind is 'spearman'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arrays", "options", "error", "message"), WRONG)
def test_wrong_arguments_are_named(name, arrays, options, error, message):
    """Outside and under jit alike: nothing is decided by values."""
    function = functools.partial(getattr(losses, name, None) or getattr(rivals, name), **options)
    with pytest.raises(error, match=f"^{message}"):
        function(*arrays)
    traced = [a for a in arrays if isinstance(a, jax.Array)]

    def call_traced(*traced):
        left = iter(traced)
        return function(*(next(left) if isinstance(a, jax.Array) else a for a in arrays))

    with pytest.raises(error, match=f"^{message}"):
        jax.eval_shape(call_traced, *traced)


def test_a_traced_option_is_refused():
    with pytest.raises(TypeError, match=r"gamma is a .*Tracer"):
        jax.jit(lambda iou, gamma: losses.harmonic_iou_loss(iou, gamma=gamma))(V, 0.5)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from harmonic_jax import losses

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",))
rows = NamedSharding(mesh, P("data"))
rng = np.random.default_rng(0)
low, size = rng.uniform(0, 20, (2, 64, 2)), rng.uniform(5, 30, (2, 64, 2))
pred, target = np.concatenate([low, low + size], axis=-1).astype(np.float32)
logits = rng.normal(0, 2, (64, 5)).astype(np.float32)
labels = rng.integers(0, 6, 64).astype(np.int32)
where = labels < 5

def per_sample(pred, logits, target, labels, where):
    true = jnp.take_along_axis(logits, jnp.minimum(labels, 4)[:, None], -1)[:, 0]
    focal = losses.sigmoid_focal_loss(logits, labels).sum(-1)
    return losses.ciou_loss(pred, target) + losses.giou_loss(pred, target) + losses.hardet_loss(
        focal, losses.smooth_l1_loss(pred, target), jax.nn.sigmoid(true),
        losses.aligned_iou(pred, target), losses.sigmoid_entropy(true), where=where)

def mean(*args):
    return per_sample(*args).sum() / args[-1].sum()

args = (pred, logits, target, labels, where)
sharded = tuple(jax.device_put(a, rows) for a in args)
compiled = jax.jit(per_sample).lower(*sharded).compile()
assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
value = compiled(*sharded)
assert value.sharding.is_equivalent_to(rows, 1), value.sharding
step = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))
np.testing.assert_allclose(value, jax.jit(per_sample)(*args), rtol=1e-6)
for a, b in zip(jax.tree.leaves(step(*sharded)), jax.tree.leaves(step(*args)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
"""
ROOT = Path(__file__).parent.parent.parent


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        capture_output=True,
        text=True,
    ).stdout


def test_sharded_equals_one_device_without_communication():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    python(SHARDED, XLA_FLAGS=flags)
