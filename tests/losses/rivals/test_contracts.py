"""What these losses promise, as the others do: any shape, errors, bounds, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.losses import rivals
from tests.losses.rivals.cases import CASES, IOU, LOSS, OBJECTS, N


def floats_of(name, dtype=jnp.float32):
    return [jnp.asarray(array, dtype) for array in CASES[name].floats]


@pytest.fixture(scope="module")
def runs():
    """What the tests below need of every loss, in one program."""

    @jax.jit
    def every(plain):
        out = {}
        for name, case in CASES.items():
            grid = [a.reshape(3, 4, *a.shape[1:]) for a in plain[name]]
            shaped = functools.partial(case.call, rows=np.arange(N).reshape(3, 4))
            single = name == "task_alignment"  # of one image: its batch is a vmap
            out[name] = {
                "grid": case.call(*plain[name]) if single else shaped(*grid),
            }
            if not case.of_batch:
                out[name]["mapped"] = jax.vmap(lambda i, *f, c=case: c.call(*f, rows=i))(
                    jnp.arange(N), *plain[name]
                )
        return out

    return jax.device_get(every({name: floats_of(name) for name in CASES}))


@pytest.mark.parametrize("name", CASES)
def test_any_batch_shape_and_vmap(runs, name):
    expected = np.asarray(CASES[name].expected(*CASES[name].floats))
    grid = runs[name]["grid"]
    assert grid.dtype == jnp.float32
    np.testing.assert_allclose(grid.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)
    mapped = runs[name].get("mapped", expected)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_no_samples(name):
    empty = [a[:0] for a in floats_of(name)]
    shape = jax.eval_shape(lambda: CASES[name].call(*empty, rows=slice(0))).shape
    full = jax.eval_shape(lambda: CASES[name].call(*floats_of(name))).shape
    assert shape == ((0, *full[1:]) if full else ())


def test_halves_of_a_batch_share_its_statistics():
    """With `axis_name`, the rows of two devices have the values and gradients of one batch."""
    names = [name for name, case in CASES.items() if case.has_axis]
    assert len(names) == 3

    def total(floats, rows, axis_name):
        out = [CASES[n].call(*floats[n], rows=rows, axis_name=axis_name) for n in names]
        # A loss that every device has whole counts once.
        return sum(v.sum() / (2 if v.ndim == 0 and axis_name else 1) for v in out)

    def split(floats, weigh):
        rows = jnp.arange(N).reshape(2, -1)
        halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), floats)
        each = jax.vmap(lambda f, r: total(f, r, "data"), axis_name="data")(halves, rows)
        return (each * weigh).sum()

    floats = {name: floats_of(name) for name in names}
    whole = jax.jit(jax.value_and_grad(lambda f: total(f, slice(None), None)))(floats)
    parts = jax.jit(jax.value_and_grad(split))(floats, jnp.ones(2))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_isr_ranks_on_its_device_and_scales_with_all():
    labels = np.repeat([0, 1], 6)  # as many of either, so both halves have the whole batch's n_max
    objects = OBJECTS + 10 * labels

    def run(rows, axis_name=None):
        args = (LOSS, IOU, labels, objects)
        return rivals.isr_loss(*(jnp.asarray(a)[rows] for a in args), axis_name=axis_name)

    halves = jnp.arange(N).reshape(2, 6)
    parts = jax.jit(jax.vmap(lambda rows: run(rows, "data"), axis_name="data"))(halves)
    np.testing.assert_allclose(parts.reshape(-1), run(slice(None)), rtol=1e-5)


X, Y, V = jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32), jnp.ones(3)
WRONG = [
    ("quality_focal_loss", (X, Y, V[:2]), {}, ValueError, r"quality has shape \(2,\)"),
    ("quality_focal_loss", (X, Y, Y), {}, TypeError, "quality has dtype int32"),
    ("quality_focal_loss", (X, V, V), {}, TypeError, "labels has dtype float32"),
    ("quality_focal_loss", (X, Y, V), {"beta": -1}, ValueError, "beta is -1"),
    ("varifocal_loss", (X, Y, V), {"where": V}, TypeError, "where has dtype float32"),
    ("task_aligned_loss", (X, Y, X), {}, ValueError, r"alignment has shape \(3, 4\)"),
    ("task_alignment", (X, X, Y), {"num_objects": 2}, ValueError, r"prob has shape \(3, 4\)"),
    ("iou_balanced_cls_loss", (V, X), {}, ValueError, r"iou has shape \(3, 4\)"),
    ("iou_balanced_loc_loss", (V, V), {"exponent": "1"}, TypeError, "exponent is a str"),
    ("iou_hierarchical_rank", (V, V, Y), {}, TypeError, "labels has dtype float32"),
    ("isr_loss", (V, V, Y, Y), {"bias": 2}, ValueError, "bias is 2"),
    ("carl_loss", (V, Y), {}, TypeError, "loc_loss has dtype int32"),
    ("correlation_loss", (V, V), {"kind": "spearman"}, ValueError, "kind is 'spearman'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arrays", "options", "error", "message"), WRONG, ids=[w[0] + w[4] for w in WRONG]
)
def test_wrong_arguments_are_named(name, arrays, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        jax.eval_shape(lambda *a: getattr(rivals, name)(*a, **options), *arrays)
