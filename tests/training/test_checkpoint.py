"""Checkpoints: exact round trips, decay, refusals, kills."""

import jax
import jax.numpy as jnp
import numpy as np
from harmonic_jax.training.checkpoint import CheckpointStore


def test_x(tmp_path):
    st = {
        "a": jnp.arange(5.0),
        "n": np.int32(4),
        "e": jnp.zeros((0, 3)),
        "bf": jnp.full((5,), 1.1, jnp.bfloat16),
    }
    with CheckpointStore(tmp_path / "c") as s:
        for i in (10, 20, 30):
            s.save(i, st, {"x": 1})
        s.wait()
        assert s.steps() == (20, 30)
        r = s.restore(jax.eval_shape(lambda: st))
        print(r)
