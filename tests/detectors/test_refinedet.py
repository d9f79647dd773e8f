"""RefineDet's detections against a loop over anchors."""

import dataclasses

import jax
import numpy as np

from harmonic_jax import config as c
from harmonic_jax.detectors import refinedet
from tests.detectors import families, tiny
from tests.detectors import reference as ref
from tests.detectors.tiny import K


def test_detections_are_refined_anchors_that_the_second_deltas_move() -> None:
    """All of them, against NumPy."""
    anchors = families.refinedet_anchors()
    everything = c.PostprocessConfig(
        score_threshold=0.0, topk=1000, nms_iou=1.0, max_detections=K * len(anchors)
    )
    config = dataclasses.replace(families.REFINEDET, postprocess=everything, min_objectness=0.3)
    outputs, truth = families.refinedet_case(6)
    found = jax.jit(
        lambda own: refinedet.detect(tiny.Given(config, own), tiny.batch_of(truth, families.SHAPE))
    )(outputs)
    for image in range(2):
        expected = []
        rows = zip(
            anchors,
            *(
                tiny.of_image(levels, image)
                for module in outputs
                for levels in vars(module).values()
            ),
            strict=True,
        )
        for anchor, objectness, first, logits, second in rows:
            if ref.softmax(objectness)[0] >= config.min_objectness:
                box = ref.decode(
                    second, ref.decode(first, anchor, ref.SSD_WEIGHTS), ref.SSD_WEIGHTS
                )
                box = np.clip(box, 0, 64)
                expected += [(ref.softmax(logits)[k], k, box) for k in range(K)]
        assert everything.max_detections / 3 < len(expected) < everything.max_detections
        expected.sort(key=lambda row: -row[0])
        ref.assert_detections(jax.tree.map(lambda x, i=image: x[i], found), expected)
