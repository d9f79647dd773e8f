"""What every public loss, entropy and quality function promises, each promise shown for all:
masks, types, JAX's strict settings, no NaN from infinite logits, far boxes and extreme options.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax import losses
from harmonic_jax.losses import rivals
from tests.losses.every import EVERY, N
from tests.losses.rivals.cases import CASES

WHERE = np.arange(N) % 3 != 0
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def both(name, floats, **options):
    """The value, and the gradient of its sum by every float argument."""
    function = functools.partial(EVERY[name].call, **options)
    if not EVERY[name].is_loss:
        return function(*floats), []
    value, pull = jax.vjp(function, *floats)
    return value, pull(jnp.ones_like(value))


def test_no_public_function_is_forgotten():
    public = {
        name
        for room in (losses, rivals)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    }
    assert set(EVERY) == public
    for name in public:
        function = getattr(losses, name, None) or getattr(rivals, name)
        assert inspect.signature(function).parameters["where"].default is None, name


def without_labels(integers):
    """What has no class or object where the mask is False."""
    return jnp.where(WHERE, integers, jnp.asarray(-1, integers.dtype))


@pytest.mark.parametrize("name", EVERY)
def test_where(name):
    """Value and gradient are exactly 0 where it is False, and elsewhere what they are without the
    masked rows, whatever these hold."""
    plain = mixed(name, "float32")
    of_batch = name in CASES and CASES[name].of_batch

    @jax.jit
    def run(fill, where):
        floats = [jnp.where(grown(WHERE, a), a, fill) for a in plain]
        return both(name, floats, where=where, change=without_labels)

    @jax.jit
    def without():
        return both(name, [array[WHERE] for array in plain], rows=WHERE)

    def kept(result):
        return jax.tree.map(lambda a: a[WHERE] if a.ndim else a, result)

    want = without() if of_batch else kept(run(0.5, np.ones(N, bool)))
    for fill in (np.nan, np.inf, -np.inf):
        value, gradients = got = run(fill, WHERE)
        for array in [value, *gradients]:
            assert array.ndim == 0 or (array[~WHERE] == (0 if gradients else -1)).all()
        for a, b in zip(jax.tree.leaves(kept(got)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def grown(mask, array):
    return mask.reshape(-1, *[1] * (array.ndim - 1))


def mixed(name, *dtypes):
    cycle = itertools.cycle(dtypes)
    return [jnp.asarray(array, next(cycle)) for array in EVERY[name].floats]


@pytest.fixture(scope="module")
def low_and_wide():
    """Every function of bfloat16, and of the same numbers in float32: one program."""

    @jax.jit
    def run(low, wide):
        return [{n: EVERY[n].call(*every[n]) for n in EVERY} for every in (low, wide)]

    low = {name: mixed(name, "bfloat16") for name in EVERY}
    return jax.device_get(run(low, jax.tree.map(lambda a: a.astype(jnp.float32), low)))


@pytest.mark.parametrize("name", EVERY)
def test_types(low_and_wide, name):
    """Computed in float32 (float64 if there is one), gradients in the type of their input."""
    low, wide = (values[name] for values in low_and_wide)
    np.testing.assert_allclose(low, wide, rtol=1e-6)

    def result(*dtypes):
        floats = mixed(name, *dtypes)
        value, gradients = jax.eval_shape(lambda floats: both(name, floats), floats)
        assert [g.dtype for g in gradients] == [f.dtype for f in floats][: len(gradients)]
        return value.dtype

    single, double = ("float32", "float64") if EVERY[name].is_loss else ("int32", "int32")
    for dtypes in (["bfloat16"], ["float16"], ["float32"], ["float16", "float32", "bfloat16"]):
        assert result(*dtypes) == single
    with jax.enable_x64(True):
        for dtypes in (["float64"], ["float64", "float32"], ["float64", "float16"]):
            assert result(*dtypes) == double


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_strict_promotion(name, x64):
    """JAX may be told to promote nothing: labels of any integer type and mixed floats still do."""
    integers = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]
    integers += ["int64", "uint64"] if x64 else []
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        floats = mixed(name, "float32", "bfloat16", "float64" if x64 else "float16")
        for dtype in integers:
            run = functools.partial(both, name, where=WHERE, change=lambda a, t=dtype: a.astype(t))
            jax.eval_shape(run, floats)


@pytest.mark.parametrize("name", EVERY)
def test_debug_nans_finds_none(name):
    """Masked NaN, masked labels, labels that are no class: no step on the way makes a NaN of them,
    forward or backward, as JAX looks for with `jax_debug_nans`."""
    floats = [array.at[~WHERE].set(jnp.nan) for array in mixed(name, "float32")]

    def change(integers):
        return without_labels(integers).at[1].set(99)

    with jax.debug_nans(True):
        both(name, floats, where=WHERE, change=change)


# Options at the ends of their ranges, beside the defaults.
ENDS = {
    "hardet_loss": [{"alpha": 0.0, "gamma": 0.0, "margin": 0.0, "box_weight": 0.0}],
    "harmonic_loss": [{"factor_gradient": "stop"}, {"factor_gradient": "cls_only"}],
    "harmonic_iou_loss": [{"gamma": 0.0}],
    "task_contrastive_loss": [{"margin": 0.0}, {"margin": 1.0}],
    "sigmoid_focal_loss": [{"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.0}, {"gamma": 9.0}],
    "smooth_l1_loss": [{"beta": 0.0}, {"beta": 1e-38}, {"beta": 1e9}],
    "quality_focal_loss": [{"beta": 0.0}, {"beta": 0.5}, {"beta": 9.0}],
    "task_aligned_loss": [{"gamma": 0.0}, {"gamma": 0.5}],
    "varifocal_loss": [{"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.0}],
    "task_alignment": [{"alpha": 0.0, "beta": 0.0}, {"alpha": 0.5}],
    "iou_balanced_cls_loss": [{"exponent": 0.0}, {"exponent": 0.5}],
    "iou_balanced_loc_loss": [{"exponent": 0.0}, {"exponent": 0.5}],
    "isr_loss": [{"exponent": 0.0}, {"exponent": 0.5, "bias": 1.0}],
    "carl_loss": [{"exponent": 0.0, "bias": 0.0}, {"exponent": 0.5, "bias": 0.0}],
    "correlation_loss": [{"kind": "pearson"}],
}
INF, NAN = np.inf, np.nan
CORNERS = np.array(
    [
        [0, 0, 8, 9], [3, 3, 3, 3], [3, 3, 3, 9], [9, 9, 2, 2], [0, 0, 1e-30, 1e-30],
        [0, 0, 1e20, 1e20], [-1e20, -1e20, 1e20, 1e20], [1e20, 1e20, -1e20, -1e20],
        [1e20, 0, 2e20, 1], [-3e38, -3e38, 3e38, 3e38], [0, 0, 3e38, 1e-30], [-1e9, 0, 1e10, 1e9],
        [-INF, 0, INF, 1], [0, 0, INF, INF], [INF] * 4, [NAN] * 4, [0, NAN, 8, 9],
    ],
    np.float32,
)  # fmt: skip
LOGITS = [-INF, -3e38, -200.0, 0.0, 200.0, 3e38, INF]
UNIT, LOSSES, FAR = [0.0, 1e-38, 0.5, 1.0], [0.0, 1e-38, 1.0, 1e30], [0.0, 1.0, 1e30, INF]
# What each float argument is tried with.
EXTREMES = {
    "harmonic_loss": [FAR, FAR],
    "task_contrastive_loss": [UNIT, UNIT, [0.0, 0.7, 100.0]],
    "harmonic_iou_loss": [UNIT],
    "hardet_loss": [FAR, FAR, UNIT, UNIT, [0.0, 0.7, 100.0]],
    "iou_balanced_cls_loss": [LOSSES, UNIT],
    "iou_balanced_loc_loss": [LOSSES, UNIT],
    "isr_loss": [LOSSES, UNIT],
    "carl_loss": [UNIT, LOSSES],
    "task_alignment": [UNIT, UNIT],
    "correlation_loss": [UNIT, UNIT],
    "iou_hierarchical_rank": [UNIT],
}


def extremes(name):
    if name in EXTREMES:
        return EXTREMES[name]
    of_logits = any(word in name for word in ("focal", "sigmoid", "softmax", "mask", "cls", "task"))
    return [LOGITS, UNIT] if of_logits else [CORNERS, CORNERS]


@pytest.mark.parametrize("name", EVERY)
def test_extremes_give_no_nan(name):
    """Nor do their gradients, which are finite; a pair with NaN in it shows as inf."""
    rng = np.random.default_rng(0)
    rows = np.arange(1500)
    floats = []
    for array, values in zip(EVERY[name].floats, extremes(name), strict=False):
        pool = np.asarray(values, np.float32)
        shape = (len(rows), *array.shape[1 : array.ndim - pool.ndim + 1])
        floats.append(pool[rng.integers(0, len(pool), shape)])

    @jax.jit
    def run(floats):
        options = [{}, *ENDS.get(name, [])]
        return [both(name, floats, rows=rows % N, **each) for each in options]

    has_nan = np.any([np.isnan(f).any(-1) for f in floats if f.shape[-1:] == (4,)], axis=0)
    for value, gradients in run(floats):
        assert not np.isnan(value).any()
        assert all(np.isfinite(g).all() for g in gradients)
        if extremes(name)[0] is CORNERS:
            of_nan = 0.0 if name == "aligned_iou" else INF
            assert (value[has_nan] == of_nan).all()
            assert name == "smooth_l1_loss" or np.isfinite(value[~has_nan]).all()
