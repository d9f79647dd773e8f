"""Faster and Mask R-CNN against torchvision's: same weights and photos, same detections."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import Config, FasterRCNNConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.masks import RleTable, paste_masks
from harmonic_jax.pretrained import detector_layout
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.models import DETECTORS
from harmonic_jax.structures import Batch, Detections
from tests.detectors.two_stage_peer import (
    NUM_CLASSES,
    SMALL_FASTER,
    SMALL_MASK_V2,
    import_torchvision,
    load,
    randomize,
    real_batch,
    small_peer,
    to_image_list,
)

NUM_IMAGES = 3


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both models, the photos, and what both say."""

    peer: Any
    config: FasterRCNNConfig
    num_classes: int
    state: tuple[nnx.State, nnx.State]
    batch: Batch
    ours: dict[str, Any]
    theirs: dict[str, Any]


def full_size(name: str) -> tuple[Any, FasterRCNNConfig, int]:
    peer = getattr(import_torchvision().models.detection, name)(weights=None, weights_backbone=None)
    config = DETECTORS[name].model
    # Their COCO weights alone come with an epsilon of 0.
    backbone = dataclasses.replace(config.backbone, norm_eps=1e-5)
    return peer, dataclasses.replace(config, backbone=backbone), 90


def small(config: FasterRCNNConfig) -> tuple[Any, FasterRCNNConfig, int]:
    return small_peer(import_torchvision(), config), config, NUM_CLASSES


CASES = {
    "faster": functools.partial(small, SMALL_FASTER),
    "mask v2": functools.partial(small, SMALL_MASK_V2),
}
FULL = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
PARAMS = [
    *(pytest.param((make, 200), id=name) for name, make in CASES.items()),
    *(
        pytest.param((functools.partial(full_size, name), 400), id=name, marks=pytest.mark.slow)
        for name in FULL
    ),
]


@pytest.fixture(scope="module", params=PARAMS)
def pair(request: pytest.FixtureRequest, coco_tiny: Path) -> Pair:
    make, long_side = request.param
    peer, config, num_classes = make()
    batch = real_batch(coco_tiny, num_images=NUM_IMAGES, long_side=long_side)
    randomize(peer, batch)
    theirs = their_answers(peer, batch)
    graphdef, params, rest = load(peer, config, num_classes)
    settings = Config(name="pair", model=config)

    @jax.jit
    def run(params: nnx.State, rest: nnx.State, batch: Batch, proposals: jax.Array) -> dict:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        features = model.features(batch.images, batch.image_size)
        raw = model.propose(features)
        cls_logits, deltas = model.classify(features, proposals)
        return {
            "features": features,
            "objectness": raw.cls_logits,
            "rpn deltas": raw.deltas,
            "logits": cls_logits,
            "deltas": deltas,
            "detections": detectors.detect(model, batch, settings),
        }

    ours = run(params, rest, batch, theirs["proposals"])
    return Pair(peer, config, num_classes, (params, rest), batch, jax.device_get(ours), theirs)


def their_answers(peer: Any, batch: Batch) -> dict[str, Any]:
    import torch

    images = to_image_list(batch)
    with torch.no_grad():
        features = peer.backbone(images.tensors)
        objectness, deltas = peer.rpn.head(list(features.values()))
        proposals, _ = peer.rpn(images, features)
        # The RoI head on as many proposals of each image, so that ours takes them as an array.
        common = min(len(boxes) for boxes in proposals)
        some = [boxes[:common] for boxes in proposals]
        heads = peer.roi_heads
        rois = heads.box_roi_pool(features, some, images.image_sizes)
        logits, box_deltas = heads.box_predictor(heads.box_head(rois))
        detections, _ = peer.roi_heads(features, proposals, images.image_sizes)
    return {
        "features": [level.permute(0, 2, 3, 1).numpy() for level in features.values()],
        "objectness": [channels_last(level, 1) for level in objectness],
        "rpn deltas": [channels_last(level, 4) for level in deltas],
        "proposals": np.stack([boxes.numpy() for boxes in some]),
        "logits": np.roll(logits.numpy(), -1, axis=-1).reshape(len(some), common, -1),
        "deltas": np.roll(box_deltas.numpy().reshape(len(some), common, -1, 4), -1, axis=-2),
        "detections": [{k: v.numpy() for k, v in found.items()} for found in detections],
    }


def channels_last(level: Any, size: int) -> np.ndarray:
    """[b, a * size, h, w] -> [b, h * w * a, size]."""
    b, _, h, w = level.shape
    split = level.reshape(b, -1, size, h, w).permute(0, 3, 4, 1, 2)
    return split.reshape(b, -1, size).numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("what", ["features", "objectness", "rpn deltas"])
def test_raw_outputs_of_each_level(pair: Pair, what: str) -> None:
    for actual, expected in zip(pair.ours[what], pair.theirs[what], strict=True):
        assert relative_error(actual, expected) <= 1e-3


@pytest.mark.parametrize("what", ["logits", "deltas"])
def test_raw_outputs_of_the_roi_head(pair: Pair, what: str) -> None:
    assert relative_error(pair.ours[what], pair.theirs[what]) <= 1e-3


def test_detections(pair: Pair) -> None:
    """The same, one to one; scores that agree in all digits may have changed places."""
    found: Detections = pair.ours["detections"]
    for i, expected in enumerate(pair.theirs["detections"]):
        valid = found.valid[i]
        boxes, scores, labels = (
            found.boxes[i, valid],
            found.scores[i, valid],
            found.labels[i, valid],
        )
        assert len(scores) == len(expected["scores"]) >= 20
        assert len(set(labels.tolist())) > 1
        assert (np.diff(scores) <= 0).all()
        is_same = labels[:, None] + 1 == expected["labels"][None]
        is_same &= np.abs(scores[:, None] - expected["scores"][None]) <= 1e-4
        is_same &= np.abs(boxes[:, None] - expected["boxes"][None]).max(-1) <= 0.05
        assert (is_same.sum(0) >= 1).all()
        assert (is_same.sum(1) >= 1).all()
        if "masks" in expected:
            partner = is_same.argmax(0)
            assert len(set(partner.tolist())) == len(partner)
            masks, wanted = found.masks[i, valid][partner], expected["masks"][:, 0]
            np.testing.assert_allclose(masks, wanted, atol=2e-3)
            assert wanted.std() > 0.1
            size = tuple(pair.batch.image_size[i].astype(int).tolist())
            drawn = paste_masks(masks, boxes[partner], *size)
            ious = mask_ious(drawn, their_drawing(expected, size))
            assert len(ious) == len(partner)
            assert min(ious) >= 0.99


def their_drawing(expected: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Their masks in the image, bool [d, h, w]."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, boxes = torch.from_numpy(expected["masks"]), torch.from_numpy(expected["boxes"])
    return (paste_masks_in_image(masks, boxes, size) >= 0.5).numpy()[:, 0]


def mask_ious(drawn: RleTable, wanted: np.ndarray) -> list[float]:
    """IoU of each pair; masks that are empty on both sides agree."""
    ious = []
    for row, theirs in enumerate(wanted):
        ours = drawn.decode(row).astype(bool)
        assert ours.shape == theirs.shape
        union = (ours | theirs).sum()
        ious.append(float((ours & theirs).sum() / union) if union else 1.0)
    assert wanted.any(axis=(1, 2)).mean() > 0.5
    return ious


def test_weights_return_bit_for_bit(pair: Pair) -> None:
    layout = detector_layout(pair.config, pair.num_classes)
    exported = export_state(*pair.state, layout)
    theirs = {k: v.numpy() for k, v in pair.peer.state_dict().items() if "num_batches" not in k}
    assert exported.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


@pytest.mark.parametrize("name", FULL)
def test_number_of_parameters(name: str) -> None:
    """torchvision's documented totals, constants of frozen norms not counted."""
    expected = {
        "fasterrcnn_resnet50_fpn": 41_755_286,
        "fasterrcnn_resnet50_fpn_v2": 43_712_278,
        "maskrcnn_resnet50_fpn": 44_401_393,
        "maskrcnn_resnet50_fpn_v2": 46_359_409,
    }[name]
    config = DETECTORS[name].model
    config = dataclasses.replace(
        config, backbone=dataclasses.replace(config.backbone, frozen_stages=0)
    )
    model = nnx.eval_shape(lambda: build_model(config, 90, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected
