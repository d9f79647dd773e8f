"""The choice of a suppression, through the postprocessing of every detector."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.postprocess.dense import postprocess_dense
from harmonic_jax.postprocess.multibox import postprocess_multibox
from harmonic_jax.postprocess.proposals import Proposals
from harmonic_jax.postprocess.selection import Suppression
from harmonic_jax.postprocess.two_stage import postprocess_rois

from harmonic_jax.config import (
    ConfigError,
    MultiBoxPostprocessConfig,
    NmsName,
    PostprocessConfig,
    RoIPostprocessConfig,
)
from harmonic_jax.structures import Predictions
from harmonic_jax.training.config_json import config_from_json, config_to_json
from tests.training.tiny import tiny_config

# Two boxes of IoU 3/4, each found as another class too, and less.
BOXES = np.array([[0, 0, 8, 8], [0, 0, 8, 6]], np.float32)
PROBS = np.array([[0.6, 0.1], [0.4, 0.3]])
SIZE = np.array([10.0, 10.0], np.float32)
OPTIONS = {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 5}

GONE = np.exp(-(0.75**2) / 0.5)
AVERAGED = (0.6 * 8 + 0.4 * 6) / 1.0
EXPECTED = {  # (score, label), best first
    "class": [(0.6, 0), (0.3, 1)],
    "agnostic": [(0.6, 0)],
    "soft_linear": [(0.6, 0), (0.3, 1), (0.4 * 0.25, 0), (0.1 * 0.25, 1)],
    "soft_gaussian": [(0.6, 0), (0.3, 1), (0.4 * GONE, 0), (0.1 * GONE, 1)],
    "matrix": [(0.6, 0), (0.3, 1), (0.4 * GONE, 0), (0.1 * GONE, 1)],
    "weighted": [(0.6, 0), (0.3, 1)],
}


def dense(**options):
    logits = np.log(PROBS) - np.log1p(-PROBS)
    predictions = Predictions((jnp.asarray(logits, jnp.float32),), (jnp.zeros((2, 4)),))
    return postprocess_dense(predictions, [BOXES], SIZE, topk_per_level=9, **OPTIONS, **options)


def softmax_logits():
    rest = 1 - PROBS.sum(axis=1, keepdims=True)
    return jnp.asarray(np.log(np.concatenate([PROBS, rest], axis=1)), jnp.float32)


def multibox(**options):
    return postprocess_multibox(
        softmax_logits(), BOXES, SIZE, topk_per_class=9, **OPTIONS, **options
    )


def rois(**options):
    proposals = Proposals(jnp.asarray(BOXES), jnp.ones(2), jnp.ones(2, bool))
    return postprocess_rois(
        softmax_logits(), jnp.zeros((2, 3, 4)), proposals, SIZE, min_size=0.01,
        weights=(10.0, 10.0, 5.0, 5.0), **OPTIONS, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("postprocess", "name"),
    [
        *((dense, name) for name in EXPECTED),
        *((other, name) for other in (multibox, rois) for name in ("soft_gaussian", "weighted")),
    ],
)
def test_each_way_by_hand(postprocess, name: str) -> None:
    found = postprocess(suppression=name)
    number = int(found.valid.sum())
    scores = [score for score, _ in EXPECTED[name]]
    np.testing.assert_allclose(found.scores[:number], scores, rtol=1e-5)
    assert found.labels[:number].tolist() == [label for _, label in EXPECTED[name]]
    bottom = AVERAGED if name == "weighted" else 8.0
    np.testing.assert_allclose(found.boxes[0], [0, 0, 8, bottom], rtol=1e-5)


def test_a_sigma_of_ones_own() -> None:
    found = dense(suppression="soft_gaussian", nms_sigma=0.1)
    np.testing.assert_allclose(found.scores[2], 0.4 * np.exp(-(0.75**2) / 0.1), rtol=1e-5)
    assert int(found.valid.sum()) == 3  # the fourth fell below 0.001


@pytest.mark.parametrize(
    "make", [PostprocessConfig, MultiBoxPostprocessConfig, RoIPostprocessConfig]
)
def test_configs_check_it(make) -> None:
    assert make().nms == "class"
    with pytest.raises(ConfigError, match=r"postprocess\.nms is 'hard'; it must be class or agn"):
        make(nms="hard")
    with pytest.raises(ConfigError, match=r"postprocess\.nms_sigma is 0.0; it must be a number in"):
        make(nms_sigma=0.0)


def test_configs_and_functions_know_the_same_ways() -> None:
    assert NmsName == Suppression


def test_a_config_file_of_before_still_opens() -> None:
    config = tiny_config()
    written = json.loads(json.dumps(config_to_json(config)))
    for name in ("nms", "nms_sigma"):
        del written["model"]["postprocess"][name]
    assert config_from_json(written) == config
    soft = dataclasses.replace(config.model.postprocess, nms="matrix", nms_sigma=0.3)
    model = dataclasses.replace(config.model, postprocess=soft)
    changed = dataclasses.replace(config, model=model)
    assert config_from_json(json.loads(json.dumps(config_to_json(changed)))) == changed
