"""What every public function of losses promises, each promise shown for all: the formula and its
gradient, masks, any batch shape, types, JAX's strict settings, nothing but finite numbers from
infinite logits, far boxes and extreme options.
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
from tests.losses.every import CASES, WITH_INTEGERS, N
from tests.losses.reference import central_difference

WHERE = np.arange(N) % 3 != 0
EVERY = [(name, options) for name, case in CASES.items() for options in ({}, *case.options)]


def both(name, floats, **options):
    """The value, and the gradient of its sum by every float argument."""
    value, pull = jax.vjp(functools.partial(CASES[name].call, **options), *floats)
    return value, pull(jnp.ones_like(value))


def test_no_public_function_is_forgotten():
    public = {
        name: getattr(room, name)
        for room in (losses, rivals)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    }
    assert {name.split()[0] for name in CASES} == set(public)
    for name, function in public.items():
        assert inspect.signature(function).parameters["where"].default is None, name


@pytest.fixture(scope="module")
def computed():
    """Values and gradients of all of them: one program, in float64."""

    @jax.jit
    def every(arrays):
        return [
            both(name, floats, **options)
            for (name, options), floats in zip(EVERY, arrays, strict=True)
        ]

    with jax.enable_x64(True):
        arrays = [[jnp.asarray(a) for a in CASES[name].floats] for name, _ in EVERY]
        return jax.device_get(every(arrays))


@pytest.mark.parametrize("index", range(len(EVERY)), ids=[f"{n}{o or ''}" for n, o in EVERY])
def test_equals_numpy_in_value_and_gradient(computed, index):
    (name, options), (value, gradients) = EVERY[index], computed[index]
    case, floats = CASES[name], CASES[name].floats
    formula = functools.partial(case.expected, **options)
    np.testing.assert_allclose(value, formula(*floats), rtol=1e-10, atol=1e-14)
    if case.held:
        formula = case.held(floats, **options)
    for argument, gradient in enumerate(gradients):
        if argument not in case.moves:
            assert not np.any(gradient)
            continue

        def of_samples(moved, argument=argument):
            values = formula(*floats[:argument], moved, *floats[argument + 1 :])
            return values.reshape(N, -1).sum(-1)

        if case.of_batch and not case.held:
            expected = of_the_sum(
                lambda moved, f=formula, i=argument: f(*floats[:i], moved, *floats[i + 1 :]).sum(),
                floats[argument],
            )
        else:
            expected = central_difference(of_samples, floats[argument])
        np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=2e-8)


def of_the_sum(f, x, h=1e-6):
    """Derivatives of a number, one coordinate at a time."""
    steps = [h * row.reshape(x.shape) for row in np.eye(x.size)]
    return np.reshape([(f(x + step) - f(x - step)) / (2 * h) for step in steps], x.shape)


@pytest.fixture(scope="module")
def shaped():
    """Of every function in one program, in float32: of a grid of samples, and mapped over them."""

    @jax.jit
    def every(plain):
        out = {}
        for name, case in CASES.items():
            single = name == "task_alignment"  # of one image: its batch is a vmap
            grid = plain[name] if single else [a.reshape(3, 4, *a.shape[1:]) for a in plain[name]]
            rows = slice(None) if single else np.arange(N).reshape(3, 4)
            out[name] = [case.call(*grid, rows=rows)]
            if not case.of_batch:
                mapped = jax.vmap(lambda i, *f, c=case: c.call(*f, rows=i))
                out[name].append(mapped(jnp.arange(N), *plain[name]))
        return out

    return jax.device_get(every({name: mixed(name, "float32") for name in CASES}))


@pytest.mark.parametrize("name", CASES)
def test_any_batch_shape_eager_jit_and_vmap(shaped, name):
    case = CASES[name]
    expected = np.asarray(case.expected(*case.floats))
    for value in (*shaped[name], case.call(*mixed(name, "float32"))):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)
    empty = [array[:0] for array in mixed(name, "float32")]
    shape = jax.eval_shape(lambda: case.call(*empty, rows=slice(0))).shape
    assert shape == ((0, *expected.shape[1:]) if expected.shape else ())


def without_labels(integers):
    """What has no class or object where the mask is False."""
    return jnp.where(WHERE, integers, jnp.asarray(-1, integers.dtype))


@pytest.fixture(scope="module")
def masked():
    """Of every function: value and gradients with something in what is left out, and without it."""

    @jax.jit
    def run(plain, fill, where):
        out = {}
        for name in CASES:
            floats = [jnp.where(grown(WHERE, a), a, fill) for a in plain[name]]
            out[name] = both(name, floats, where=where, change=without_labels)
        return out

    @jax.jit
    def without(plain):
        names = [name for name in CASES if CASES[name].of_batch]
        return {n: both(n, [array[WHERE] for array in plain[n]], rows=WHERE) for n in names}

    plain = {name: mixed(name, "float32") for name in CASES}
    results = [run(plain, fill, WHERE) for fill in (np.nan, np.inf, -np.inf)]
    everything = run(plain, 0.5, np.ones(N, bool))
    kept = jax.tree.map(lambda a: a[WHERE] if a.ndim else a, (results, everything))
    return jax.device_get((results, kept[0], kept[1] | without(plain)))


@pytest.mark.parametrize("name", CASES)
def test_where(masked, name):
    """Value and gradient are exactly 0 where it is False, and elsewhere what they are without the
    masked rows, whatever these hold."""
    results, kept, want = masked
    for result, own in zip(results, kept, strict=True):
        for array in jax.tree.leaves(result[name]):
            assert array.ndim == 0 or (array[~WHERE] == 0).all()
        for a, b in zip(*map(jax.tree.leaves, (own[name], want[name])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def grown(mask, array):
    return mask.reshape(-1, *[1] * (array.ndim - 1))


def mixed(name, *dtypes):
    cycle = itertools.cycle(dtypes)
    return [jnp.asarray(array, next(cycle)) for array in CASES[name].floats]


@pytest.fixture(scope="module")
def low_and_wide():
    """Every function of bfloat16, and of the same numbers in float32: one program."""

    @jax.jit
    def run(low, wide):
        return [{n: CASES[n].call(*every[n]) for n in CASES} for every in (low, wide)]

    low = {name: mixed(name, "bfloat16") for name in CASES}
    return jax.device_get(run(low, jax.tree.map(lambda a: a.astype(jnp.float32), low)))


@pytest.mark.parametrize("name", CASES)
def test_types(low_and_wide, name):
    """Computed in float32 (float64 if there is one), gradients in the type of their input."""
    low, wide = (values[name] for values in low_and_wide)
    np.testing.assert_allclose(low, wide, rtol=1e-6)

    def result(*dtypes):
        floats = mixed(name, *dtypes)
        value, gradients = jax.eval_shape(lambda floats: both(name, floats), floats)
        assert [g.dtype for g in gradients] == [f.dtype for f in floats]
        return value.dtype

    for dtypes in (["bfloat16"], ["float16"], ["float32"], ["float16", "float32", "bfloat16"]):
        assert result(*dtypes) == "float32"
    with jax.enable_x64(True):
        for dtypes in (["float64"], ["float64", "float32"], ["float64", "float16"]):
            assert result(*dtypes) == "float64"


@pytest.mark.parametrize("name", CASES)
def test_strict_promotion(name):
    """JAX may be told to promote nothing: labels of any integer type and mixed floats still do."""
    for x64, integers in ((False, ["int8", "uint16"]), (True, ["int16", "uint32", "uint64"])):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
            floats = mixed(name, "float32", "bfloat16", "float64" if x64 else "float16")
            for dtype in integers if name in WITH_INTEGERS else ["int32"]:
                jax.eval_shape(
                    functools.partial(
                        both, name, where=WHERE, change=lambda a, t=dtype: a.astype(t)
                    ),
                    floats,
                )


@pytest.mark.parametrize("name", CASES)
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
    "hardet_loss": [
        {"alpha": 0.0, "gamma": 0.0, "margin": 0.0, "cls_weight": 0.0, "box_weight": 0.0},
        {"factor_gradient": "stop"},
        {"factor_gradient": "cls_only"},
    ],
    "harmonic_loss": [{"factor_gradient": "stop"}, {"factor_gradient": "cls_only"}],
    "harmonic_iou_loss": [{"gamma": 0.0}],
    "task_contrastive_loss": [{"margin": 0.0}, {"margin": 1.0}],
    "sigmoid_focal_loss": [{"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.0}, {"gamma": 9.0}],
    "smooth_l1_loss": [{"beta": 0.0}, {"beta": 1e-38}, {"beta": 1e9}],
    "quality_focal_loss": [{"beta": 0.0}, {"beta": 0.5}, {"beta": 9.0}],
    "varifocal_loss": [{"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.0}],
    "ia_bce_loss": [{"alpha": 0.0, "gamma": 0.0}, {"alpha": 1.0, "gamma": 0.5}],
    "matchability_aware_loss": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 9.0}],
    "position_supervised_loss": [{"gamma": 0.0}, {"gamma": 0.5}],
    "inner_iou_loss": [{"ratio": 0.1}, {"ratio": 10.0}],
    "nwd_loss": [{"constant": 1e-3}, {"constant": 1e6}],
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
    "hardet_loss from cross entropy": [FAR, FAR, UNIT, UNIT, [0.0, 0.7, 100.0], FAR],
    "iou_balanced_cls_loss": [LOSSES, UNIT],
    "iou_balanced_loc_loss": [LOSSES, UNIT],
    "isr_loss": [LOSSES, UNIT],
    "carl_loss": [UNIT, LOSSES],
    "ia_bce_loss": [LOGITS, UNIT],
    "matchability_aware_loss": [LOGITS, UNIT],
    "position_supervised_loss": [LOGITS, UNIT],
    "task_alignment": [UNIT, UNIT],
    "correlation_loss": [UNIT, UNIT],
}


HIGHEST = {  # 2 of the others
    "aligned_iou": 1, "iou_loss": 1, "ciou_loss": 3, "eiou_loss": 4,
    "inner_iou_loss": 1, "nwd_loss": 1,
}  # fmt: skip


def extremes(name):
    if name in EXTREMES:
        return EXTREMES[name]
    of_logits = any(word in name for word in ("focal", "sigmoid", "softmax", "mask", "cls", "task"))
    return [LOGITS, UNIT] if of_logits else [CORNERS, CORNERS]


@pytest.fixture(scope="module")
def at_extremes():
    """1500 samples of such numbers, and every function of them with all its options."""
    rng = np.random.default_rng(0)
    rows = np.arange(1500)
    every = {}
    for name in CASES:
        every[name] = []
        for array, values in zip(CASES[name].floats, extremes(name), strict=False):
            pool = np.asarray(values, np.float32)
            shape = (len(rows), *array.shape[1 : array.ndim - pool.ndim + 1])
            every[name].append(pool[rng.integers(0, len(pool), shape)])

    @jax.jit
    def run(every):
        return {
            name: [both(name, every[name], rows=rows % N, **o) for o in ({}, *ENDS.get(name, []))]
            for name in CASES
        }

    return every, jax.device_get(run(every))


@pytest.mark.parametrize("name", CASES)
def test_extremes_give_no_nan(at_extremes, name):
    """Nor do their gradients, which are finite; a pair with NaN in it shows as inf."""
    floats, results = (every[name] for every in at_extremes)
    has_nan = np.any([np.isnan(f).any(-1) for f in floats if f.shape[-1:] == (4,)], axis=0)
    for value, gradients in results:
        assert not np.isnan(value).any()
        assert all(np.isfinite(g).all() for g in gradients)
        if extremes(name)[0] is CORNERS:
            of_nan = 0.0 if name == "aligned_iou" else INF
            assert (value[has_nan] == of_nan).all()
            if name != "smooth_l1_loss":
                assert value[~has_nan].min() >= -1e-6
                assert value[~has_nan].max() <= HIGHEST.get(name, 2) + 1e-6
