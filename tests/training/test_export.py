"""The exported inference function, loaded again, says what the jitted one says."""

import dataclasses

import jax
import numpy as np
import pytest

from harmonic_jax.config import Config, FasterRCNNConfig
from harmonic_jax.training.export import export_predict
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import build_detector, init_variables
from harmonic_jax.training.step import make_predict_step
from tests.detectors.test_two_stage import MODEL as MASK_RCNN
from tests.training.tiny import random_batch, tiny_config

pytest.importorskip("flatbuffers", reason="jax.export writes its artefacts with flatbuffers")


def faster_rcnn() -> Config:
    fields = {f.name: getattr(MASK_RCNN, f.name) for f in dataclasses.fields(FasterRCNNConfig)}
    return dataclasses.replace(tiny_config(), model=FasterRCNNConfig(**fields))


def sensitive(config: Config) -> Config:
    """Untrained scores are low: nothing would be detected, and the test compare nothing."""
    lower = dataclasses.replace(config.model.postprocess, score_threshold=0.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, postprocess=lower))


@pytest.mark.parametrize("make", [tiny_config, pytest.param(faster_rcnn, marks=pytest.mark.slow)])
def test_an_artefact_for_three_platforms(make) -> None:
    config = sensitive(make())
    mesh = data_mesh(jax.devices()[:1])
    detector = build_detector(config, 3)
    variables = init_variables(detector, seed=1, sharding=replicated(mesh))
    batch = random_batch(0, size=2)
    expected, _ = make_predict_step(detector, mesh)(variables, put_batch(batch, mesh))

    exported = export_predict(detector, variables, batch_size=2, bucket=(64, 64))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    call = jax.export.deserialize(exported.serialize()).call
    found = call(batch.images, batch.image_size, batch.scale)
    assert found["valid"].any()
    for name, array in found.items():
        # The variables are constants there, and the compiler multiplies some of them beforehand.
        exact = array.dtype != np.float32
        np.testing.assert_allclose(
            array, getattr(expected, name), rtol=0 if exact else 1e-5, atol=0, err_msg=name
        )
