"""What `train.precision = bfloat16` changes, and what it must not: read off the traced programs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from harmonic_jax.config import Config, DataConfig, LossConfig, TrainConfig
from harmonic_jax.structures import Detections
from harmonic_jax.training.compilation import abstract_batch
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import abstract_state, build_detector
from harmonic_jax.training.step import make_predict_step, make_train_step
from tests.detectors.tiny import MODELS as SMALL
from tests.training.tiny import tiny_config

MODELS = SMALL | {"retinanet": tiny_config().model}

LONGEST_SUM = 4  # The gradient of doubling a map; bfloat16 counts to 256 and no further.


def operations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from operations(inner)


def types_of(jaxpr: Any, *names: str) -> set[str]:
    """The types in which these operations compute."""
    return {
        str(operand.aval.dtype)
        for equation in operations(jaxpr.jaxpr)
        if equation.primitive.name in names
        for operand in equation.invars
    }


def summed_in_bfloat16(jaxpr: Any) -> list[int]:
    """How many numbers each sum adds up that is not one of float32 numbers."""
    sums = [eqn for eqn in operations(jaxpr.jaxpr) if eqn.primitive.name == "reduce_sum"]
    return [
        eqn.invars[0].aval.size // eqn.outvars[0].aval.size
        for eqn in sums
        if eqn.invars[0].aval.dtype == jnp.bfloat16
    ]


def floats(tree: Any) -> set[str]:
    """The types of all that is not whole numbers or truth values."""
    leaves = jax.tree.leaves(tree)
    return {str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}


@pytest.mark.parametrize("name", MODELS)
def test_networks_compute_in_bfloat16_and_everything_else_in_float32(name: str) -> None:
    is_masked = name == "mask_rcnn"
    config = Config(
        name="tiny",
        model=MODELS[name],
        data=DataConfig(short_sides=(64,), max_side=64, max_objects=4, masks=is_masked),
        loss=LossConfig(smooth_l1_beta=1.0),
        train=TrainConfig(steps=10, batch_size=2, precision="bfloat16"),
    )
    mesh = data_mesh(jax.devices()[:1])
    detector = build_detector(config, 3)
    optimizer = make_optimizer(config.optim, config.train)
    state = abstract_state(detector, optimizer, sharding=replicated(mesh))
    assert floats(state) == {"float32"}

    def batch(masks: bool) -> Any:
        return abstract_batch(config.data, (64, 64), batch_size=2, masks=masks, mesh=mesh)

    step = make_train_step(detector, optimizer, mesh)
    program, (new_state, metrics) = jax.make_jaxpr(step, return_shape=True)(state, batch(is_masked))
    assert jax.tree.map(lambda x: x.dtype, new_state) == jax.tree.map(lambda x: x.dtype, state)
    assert floats(metrics) == {"float32"}
    assert types_of(program, "conv_general_dilated") == {"bfloat16"}
    # Losses, box coding and the sums over devices. Activations of the networks are ReLUs, but for
    # RT-DETR's, which are SiLU and GELU too.
    activations = ("logistic", "exp") if name == "rtdetr" else ()
    exact = {"exp", "log", "log1p", "logistic"} - {*activations}
    assert types_of(program, *exact) == {"float32"}
    assert types_of(program, "psum", "psum_invariant") <= {"float32", "int32"}
    assert max(summed_in_bfloat16(program), default=0) <= LONGEST_SUM

    step = make_predict_step(detector, mesh)
    program, (found, _) = jax.make_jaxpr(step, return_shape=True)(state.variables, batch(False))
    assert isinstance(found, Detections)
    assert floats(found) == {"float32"}
    assert types_of(program, "conv_general_dilated") == {"bfloat16"}
    assert types_of(program, *exact) == {"float32"}
