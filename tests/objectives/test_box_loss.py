"""torchvision's localization losses of RetinaNet: L1 in v1, GIoU in v2, of the same positives."""

from typing import Any

import numpy as np
import pytest

from harmonic_jax.config import Config, ConfigError, LossConfig, MatchConfig, SSDConfig
from tests.objectives.test_dense import assign, objective, random_case


@pytest.fixture(scope="module")
def retinanet() -> Any:
    try:
        from torchvision.models.detection import retinanet
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return retinanet


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("l1", LossConfig(hardet=False, smooth_l1_beta=0.0)),
        ("giou", LossConfig(hardet=False, box_loss="giou")),
    ],
)
def test_it_is_torchvision_s(retinanet: Any, kind: str, loss: LossConfig) -> None:
    import torch

    predictions, anchors, truth = random_case(3)
    match = MatchConfig(low_quality=False)
    sums = objective(predictions, anchors, truth, np.array([True, True]), loss=loss, match=match)
    head = retinanet.RetinaNetRegressionHead(4, 1)
    head._loss_type = kind
    all_anchors = np.concatenate(anchors)
    expected, num_images = 0.0, 2
    for i in range(num_images):
        valid = np.asarray(truth.valid[i])
        boxes = np.asarray(truth.boxes[i])[valid]
        matched = [-2 if j is None else j for j in assign(all_anchors, boxes, match)]
        deltas = np.concatenate([np.asarray(level[i]) for level in predictions.deltas])
        value = head.compute_loss(
            [{"boxes": torch.from_numpy(boxes)}],
            {"bbox_regression": torch.from_numpy(deltas)[None]},
            [torch.from_numpy(all_anchors)],
            [torch.tensor(matched)],
        )
        expected += value.item() * max(sum(j >= 0 for j in matched), 1)
    np.testing.assert_allclose(sums.terms["box_loss"], expected, rtol=1e-4)
    assert sums.num_positive > 5


def test_other_detectors_refuse_it() -> None:
    with pytest.raises(ConfigError, match=r"loss\.box_loss is 'giou'; it must be smooth_l1"):
        Config(name="ssd", model=SSDConfig(), loss=LossConfig(box_loss="giou"))
