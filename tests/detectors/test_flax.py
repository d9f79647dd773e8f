"""What flax must be able to do with a detector: a pure init and step, with and without graphs."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import ResNetConfig
from tests.detectors.tiny import RETINANET, K, random_state

BACKBONE = ResNetConfig(depth=10, width=8, norm="batch", frozen_stages=1)
CONFIG = dataclasses.replace(RETINANET, backbone=BACKBONE)


@contextlib.contextmanager
def graph_mode(enabled: bool) -> Iterator[None]:
    with nnx.set_graph_mode(enabled), nnx.set_graph_updates(enabled):
        yield


def make_init_and_step() -> tuple[Callable, Callable, list]:
    """A pure init and a pure step, as a training loop writes them; init notes its graphdefs."""
    model = nnx.eval_shape(lambda: detectors.build_model(CONFIG, K, rngs=nnx.Rngs(0)))
    graphdef = nnx.graphdef(model)
    graphdefs = [graphdef]

    def init(key: jax.Array) -> tuple[nnx.State, nnx.State]:
        model = detectors.build_model(CONFIG, K, rngs=nnx.Rngs(key))
        graphdef, params, others = nnx.split(model, nnx.Param, ...)
        graphdefs.append(graphdef)
        return params, others

    def step(params: nnx.State, others: nnx.State, images: jax.Array) -> tuple:
        def loss(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, others, copy=True)
            model.train()
            predictions = model(images)
            outputs = predictions.cls_logits + predictions.deltas
            return sum((x**2).mean() for x in outputs), nnx.state(model, nnx.Not(nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return init, step, graphdefs


def random_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def test_flax_with_and_without_graphs_traces_the_same_program() -> None:
    programs = []
    for enabled in (True, False):
        with graph_mode(enabled):
            init, step, _ = make_init_and_step()
            images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
            made = jax.eval_shape(init, jax.random.key(0))
            programs.append(jax.jit(step).lower(*made, images).as_text())
    assert programs[0] == programs[1]


def test_a_step_under_plain_jit() -> None:
    with graph_mode(False):
        init, step, graphdefs = make_init_and_step()
        params, others = jax.jit(init)(jax.random.key(0))
        (loss, new_others), grads = jax.jit(step)(params, others, random_images())

    assert graphdefs[0] == graphdefs[1]  # of eval_shape, and of the initialised model
    assert jnp.isfinite(loss)
    # The score of every class starts at the prior.
    bias = np.asarray(params["cls_head"]["output"]["bias"][...], np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), CONFIG.prior, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert jax.tree.structure(new_others) == jax.tree.structure(others)
    old, new = nnx.to_flat_state(others), nnx.to_flat_state(new_others)
    for (path, before), (_, after) in zip(old, new, strict=True):
        moved = not np.array_equal(before[...], after[...])
        assert moved == isinstance(before, nnx.BatchStat), path
    for path, leaf in nnx.to_flat_state(grads):
        gradient = np.asarray(leaf[...])
        assert np.isfinite(gradient).all(), path
        assert (gradient != 0).any(), path


def test_bfloat16_stays_close_and_gives_float32() -> None:
    exact_def, params, others = random_state(CONFIG)
    model = nnx.eval_shape(
        lambda: detectors.build_model(CONFIG, K, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    rounded_def = nnx.graphdef(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    exact, rounded = (
        jax.jit(lambda p, o, x, g=graphdef: nnx.merge(g, p, o)(x))(params, others, random_images())
        for graphdef in (exact_def, rounded_def)
    )
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert b.dtype == jnp.float32
        error = np.abs(np.asarray(b) - np.asarray(a)).mean()
        assert 0 < error < 0.05 * np.asarray(a).std()
