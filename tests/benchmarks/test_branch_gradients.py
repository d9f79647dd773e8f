"""The norm of each branch's gradient at the features that both read."""

import dataclasses

import jax
import numpy as np

from benchmarks.branch_gradients import branch_norms
from harmonic_jax.detectors.parts.objective import LossConfig
from harmonic_jax.training.saved_run import SavedRun
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector, init_variables
from tests.training.tiny import random_batch, tiny_config

PLAIN = LossConfig(hardet=False)


def test_a_branch_without_weight_has_no_gradient_and_twice_the_weight_twice() -> None:
    config = tiny_config(norm="frozen")
    detector = build_detector(config, 3)
    variables = init_variables(detector, seed=0, sharding=replicated(data_mesh()))
    run = SavedRun(config, ("a", "b", "c"), detector, variables, 0, {})
    batch = random_batch(4)

    def norms(**weights: float) -> np.ndarray:
        loss = dataclasses.replace(PLAIN, **weights)
        return np.array(jax.jit(lambda batch: branch_norms(run, loss, batch))(batch))

    by_cls, by_box = norms()
    assert by_cls > 0
    assert by_box > 0
    np.testing.assert_allclose(norms(cls_weight=0.0), [0.0, by_box], rtol=1e-5)
    np.testing.assert_allclose(norms(box_weight=2.0), [by_cls, 2 * by_box], rtol=1e-5)
