"""The feature pyramid."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones import ResNetConfig
from harmonic_jax.detectors.parts.pyramid import FeaturePyramid, upsample_like

BACKBONE = ResNetConfig(depth=10, width=8)  # 8, 16, 32 and 64 channels


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
    """C2 to C5; C2 is of a size that would not fit, where it is not used."""
    rng = np.random.default_rng(1)
    shapes = ((1, 1, 8), (13, 9, 16), (7, 5, 32), (4, 3, 64))
    return [jnp.asarray(rng.standard_normal((1, *shape)), jnp.float32) for shape in shapes]


def pyramid(last: int, source: str = "c5", norm: str = "none") -> FeaturePyramid:
    return FeaturePyramid(
        BACKBONE, (3, last), 8, extra_levels_from=source, norm=norm, rngs=nnx.Rngs(0)
    )


@pytest.mark.parametrize("last", [5, 8])
def test_levels_halve_and_round_up(last: int) -> None:
    levels = pyramid(last)(features())
    sizes = [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1), (1, 1)]
    assert [level.shape for level in levels] == [(1, *size, 8) for size in sizes[: last - 2]]


@pytest.mark.parametrize("source", ["c5", "p5"])
def test_extra_levels_come_from_c5_or_p5(source: str) -> None:
    """P6 reads its source as it is, P7 the rectified P6."""
    fpn, inputs = pyramid(7, source), features()
    levels = fpn(inputs)
    p6 = fpn.extra[0](inputs[-1] if source == "c5" else levels[2])
    p7 = fpn.extra[1](jnp.maximum(p6, 0.0))
    np.testing.assert_allclose(levels[3], p6, atol=1e-6)
    np.testing.assert_allclose(levels[4], p7, atol=1e-6)


def test_coarse_levels_reach_fine_ones_and_not_the_reverse() -> None:
    fpn, inputs = pyramid(5), features()
    before = fpn(inputs)
    after = fpn([*inputs[:3], inputs[3] + 1.0])
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    after = fpn([inputs[0], inputs[1] + 1.0, *inputs[2:]])
    assert (before[0] != after[0]).any()
    assert all((a == b).all() for a, b in zip(before[1:], after[1:], strict=True))


def test_norms_and_pooled_levels() -> None:
    fpn, inputs = pyramid(7, "pool", "batch"), features()
    assert fpn.laterals[0].bias is None
    assert len(fpn.lateral_norms) == len(fpn.output_norms) == 3
    fpn.eval()
    levels = fpn(inputs)
    assert [x.shape[1:3] for x in levels] == [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1)]
    np.testing.assert_array_equal(levels[3], levels[2][:, ::2, ::2])
    np.testing.assert_array_equal(levels[4], levels[3][:, ::2, ::2])
    doubled = fpn.output_norms[0]
    doubled.scale[...] = 2 * doubled.scale[...]
    np.testing.assert_allclose(fpn(inputs)[0], 2 * levels[0], rtol=1e-5)


def test_initial_weights_have_the_published_spread() -> None:
    """Uniform with bound sqrt(3 / fan_in)."""
    fpn = FeaturePyramid(BACKBONE, (5, 5), 64, extra_levels_from="c5", rngs=nnx.Rngs(0))
    kernel = np.asarray(fpn.outputs[0].kernel[...])
    bound = np.sqrt(3 / (9 * 64))
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
