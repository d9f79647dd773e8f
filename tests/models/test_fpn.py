"""The feature pyramid."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harmonic_jax.backbones.fpn import FeaturePyramid, upsample_like


@pytest.mark.parametrize("fine", [(2, 2), (3, 4), (5, 9), (10, 13)])
def test_upsampling_is_nearest_neighbour(fine: tuple[int, int]) -> None:
    """Cell i of n comes from floor(i * m / n): the rule of an interpolation to a given size."""
    h, w = ((size + 1) // 2 for size in fine)
    x = np.random.default_rng(0).standard_normal((2, h, w, 3)).astype(np.float32)
    rows = [i * h // fine[0] for i in range(fine[0])]
    columns = [i * w // fine[1] for i in range(fine[1])]
    y = upsample_like(jnp.asarray(x), jnp.zeros((2, *fine, 3)))
    np.testing.assert_array_equal(y, x[:, rows][:, :, columns])


def features() -> list[jnp.ndarray]:
    rng = np.random.default_rng(1)
    shapes = ((13, 9, 8), (7, 5, 16), (4, 3, 32))
    return [jnp.asarray(rng.standard_normal((1, *shape)), jnp.float32) for shape in shapes]


def pyramid(num_extra: int, source: str = "c5") -> FeaturePyramid:
    return FeaturePyramid(
        (8, 16, 32), 8, num_extra=num_extra, extra_levels_from=source, rngs=nnx.Rngs(0)
    )


@pytest.mark.parametrize("num_extra", [0, 1, 2, 3])
def test_levels_halve_and_round_up(num_extra: int) -> None:
    levels = pyramid(num_extra)(features())
    sizes = [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1), (1, 1)]
    assert [level.shape for level in levels] == [(1, *s, 8) for s in sizes[: 3 + num_extra]]


def test_extra_levels_come_from_c5_or_p5() -> None:
    """P6 reads its source as it is, P7 the rectified P6."""
    for source in ("c5", "p5"):
        fpn, inputs = pyramid(2, source), features()
        levels = fpn(inputs)
        p6 = fpn.extra[0](inputs[-1] if source == "c5" else levels[2])
        p7 = fpn.extra[1](jnp.maximum(p6, 0.0))
        np.testing.assert_allclose(levels[3], p6, atol=1e-6)
        np.testing.assert_allclose(levels[4], p7, atol=1e-6)


def test_coarse_levels_reach_fine_ones_and_not_the_reverse() -> None:
    fpn, inputs = pyramid(0), features()
    before = fpn(inputs)
    after = fpn([inputs[0], inputs[1], inputs[2] + 1.0])
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    after = fpn([inputs[0] + 1.0, *inputs[1:]])
    assert (before[0] != after[0]).any()
    assert all((a == b).all() for a, b in zip(before[1:], after[1:], strict=True))


def test_initial_weights_have_the_published_spread() -> None:
    """Uniform with bound sqrt(3 / fan_in)."""
    kernel = np.asarray(
        FeaturePyramid((64,), 64, num_extra=0, extra_levels_from="c5", rngs=nnx.Rngs(0))
        .outputs[0]
        .kernel[...]
    )
    bound = np.sqrt(3 / (9 * 64))
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
