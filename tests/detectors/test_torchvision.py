"""Detectors against torchvision's: same random weights and real photos, same outputs,
detections and masks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax import detectors
from harmonic_jax.masks import paste_masks
from harmonic_jax.pretrained import detector_layout, load_detector
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.models import DETECTORS, SSD300_VGG16
from harmonic_jax.structures import Batch, GroundTruth
from tests.detectors import tiny
from tests.detectors.torchvision_peer import (
    CHANNELS,
    CLASSES,
    full_size,
    randomize,
    raw_of_one_stage,
    raw_of_two_stages,
    small_rcnn,
    small_retinanet,
    to_tensors,
)
from tests.ops.peers import torchvision_or_skip

ROUNDED = c.AnchorConfig(size_factor=8.0, scales=(1.0,), rounding="torchvision")
RETINANET = c.RetinaNetConfig(
    c.ResNetConfig(18, norm="batch"),
    channels=CHANNELS,
    head_norm="group",
    head_convs=1,
    anchors=c.AnchorConfig(rounding="torchvision"),
    postprocess=c.PostprocessConfig(max_detections=300),
)
FASTER = c.FasterRCNNConfig(
    backbone=c.ResNetConfig(18, norm="frozen"),
    channels=CHANNELS,
    rpn=c.RPNConfig(anchors=ROUNDED),
    roi_align=c.RoIAlignConfig(aligned=False),
    box_head=c.BoxHeadConfig(num_hidden=32),
)
MASK_V2 = c.MaskRCNNConfig(
    backbone=c.ResNetConfig(18, norm="batch"),
    channels=CHANNELS,
    fpn_norm="batch",
    rpn=c.RPNConfig(anchors=ROUNDED, num_convs=2),
    roi_align=c.RoIAlignConfig(aligned=False),
    box_head=c.BoxHeadConfig(layers="four_conv_fc", norm="batch", num_hidden=32),
    mask_head=c.MaskHeadConfig(num_convs=4, channels=CHANNELS, norm="batch"),
)


def real_batch(folder: Path, side: int, *, warps: bool = False) -> Batch:
    """A wide and a tall photo at network size on one canvas, with their objects; or two, warped,
    of which no two objects want the same default box (which torchvision gives to the last)."""
    annotations = json.loads(next((folder / "annotations").glob("*val*.json")).read_text())
    entries = sorted(annotations["images"], key=lambda entry: entry["id"])
    by_shape = sorted(entries, key=lambda entry: entry["height"] / entry["width"])
    chosen = entries[:2] if warps else (by_shape[0], by_shape[-1])
    canvas = side if warps else -(-side // 32) * 32
    images, sizes = np.zeros((2, canvas, canvas, 3), np.uint8), np.zeros((2, 2), np.float32)
    boxes, valid = np.zeros((2, 60, 4), np.float32), np.zeros((2, 60), bool)
    for i, entry in enumerate(chosen):
        image = cv2.imread(str(folder / "val2017" / entry["file_name"]))[:, :, ::-1]
        shape = np.array(image.shape[:2])
        height, width = np.round(shape * side / (shape if warps else shape.max())).astype(int)
        images[i, :height, :width] = cv2.resize(image, (int(width), int(height)))
        sizes[i] = height, width
        scale = np.tile(sizes[i, ::-1] / shape[::-1], 2)
        objects = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == entry["id"]]
        for j, (x, y, w, h) in enumerate(objects[:60]):
            boxes[i, j], valid[i, j] = np.array([x, y, x + w, y + h]) * scale, True
    labels = np.random.default_rng(0).integers(0, CLASSES, valid.shape).astype(np.int32)
    batch = tiny.batch_of(GroundTruth(boxes, labels, valid), (canvas, canvas))
    return dataclasses.replace(batch, images=images, image_size=sizes)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both models, the photos, and what both say."""

    peer: Any
    config: c.ModelConfig
    num_classes: int
    states: tuple[nnx.State, nnx.State]
    batch: Batch
    ours: dict[str, Any]
    theirs: dict[str, Any]


def make_pair(peer: Any, config: c.ModelConfig, batch: Batch, num_classes: int = CLASSES) -> Pair:
    import torch

    randomize(peer, batch)
    graphdef, params, others = tiny.abstract_state(config, num_classes)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, others))
    state_dict = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    states = load_detector(*zeros, state_dict, config, num_classes)
    has_background = not isinstance(config, c.RetinaNetConfig)
    with torch.no_grad():
        if isinstance(config, c.FasterRCNNConfig):
            theirs, found = raw_of_two_stages(peer, batch)
        else:
            logits, deltas = raw_of_one_stage(peer, batch)
            # Background is their first class and our last.
            logits = np.roll(logits.numpy(), -1, axis=-1) if has_background else logits.numpy()
            theirs, found = {"logits": logits, "deltas": deltas.numpy()}, peer(to_tensors(batch))

    @jax.jit
    def run(params: nnx.State, others: nnx.State, batch: Batch, proposals: Any) -> dict[str, Any]:
        model = nnx.merge(graphdef, params, others)
        model.eval()
        found = detectors.detect(model, batch)
        if not isinstance(config, c.FasterRCNNConfig):
            raw = model(batch.images, batch.image_size)
            return {"logits": raw.cls_logits, "deltas": raw.deltas, "detections": found}
        features = model.features(batch.images, batch.image_size)
        raw = model.propose(features)
        logits, deltas = model.classify(features, proposals)
        return {
            "features": features,
            "objectness": raw.cls_logits,
            "rpn deltas": raw.deltas,
            "logits": [logits],
            "deltas": [deltas],
            "detections": found,
        }

    ours = jax.device_get(run(*states, batch, theirs.pop("proposals", None)))
    if not isinstance(config, c.FasterRCNNConfig):
        ends = np.cumsum([level.shape[1] for level in ours["logits"]])[:-1]
        theirs = {name: np.split(values, ends, axis=1) for name, values in theirs.items()}
    found = [{k: v.numpy() for k, v in image.items()} for image in found]
    for image in found:
        image["labels"] = image["labels"] - has_background
    return Pair(peer, config, num_classes, states, batch, ours, theirs | {"detections": found})


def of_full_size(name: str, folder: Path) -> Pair:
    """A published detector as it is, with random weights."""
    foreign = DETECTORS[name]
    peer = full_size(name, 91)
    for module in peer.modules():
        if hasattr(module, "running_var"):
            module.eps = (
                foreign.model.backbone.norm_eps
            )  # 0 in v1, as torchvision has it for COCO_V1
    side = 256 if "retinanet" in name else 400
    return make_pair(peer, foreign.model, real_batch(folder, side), len(foreign.class_names))


PAIRS = {
    "retinanet": lambda folder: make_pair(small_retinanet(), RETINANET, real_batch(folder, 160)),
    "ssd": lambda folder: make_pair(
        full_size("ssd300_vgg16", CLASSES + 1), SSD300_VGG16, real_batch(folder, 300, warps=True)
    ),
    "faster": lambda folder: make_pair(small_rcnn(FASTER), FASTER, real_batch(folder, 200)),
    "mask v2": lambda folder: make_pair(small_rcnn(MASK_V2), MASK_V2, real_batch(folder, 200)),
}


FULL = [pytest.param(n, marks=pytest.mark.slow) for n in DETECTORS if n != "ssd300_vgg16"]


@pytest.fixture(scope="module", params=[*PAIRS, *FULL])
def pair(request: pytest.FixtureRequest, coco_tiny: Path) -> Pair:
    torchvision_or_skip()
    name = request.param
    return PAIRS[name](coco_tiny) if name in PAIRS else of_full_size(name, coco_tiny)


def test_raw_outputs(pair: Pair) -> None:
    for name in pair.theirs.keys() - {"detections"}:
        for actual, expected in zip(pair.ours[name], pair.theirs[name], strict=True):
            assert actual.shape == expected.shape, name
            assert np.abs(actual - expected).max() <= 1e-3 * np.abs(expected).max(), name


def match_detections(pair: Pair, image: int) -> tuple[np.ndarray, np.ndarray]:
    """One to one, whatever the order among equal scores: the rows of ours that are valid, and for
    each of theirs the place among them."""
    found, theirs = pair.ours["detections"], pair.theirs["detections"][image]
    rows = np.flatnonzero(found.valid[image])
    boxes, scores, labels = (a[image, rows] for a in (found.boxes, found.scores, found.labels))
    assert len(rows) == len(theirs["scores"]) >= 20
    assert len(set(labels.tolist())) > 1
    assert (np.diff(scores) <= 0).all()
    is_same = labels[:, None] == theirs["labels"][None]
    is_same &= np.abs(scores[:, None] - theirs["scores"][None]) <= 1e-4
    is_same &= np.abs(boxes[:, None] - theirs["boxes"][None]).max(-1) <= 0.05
    partner = np.full(len(rows), -1)
    for n, fits in enumerate(is_same.T):
        free = np.setdiff1d(np.flatnonzero(fits), partner)
        assert len(free), n
        partner[n] = free[0]
    return rows, partner


def test_detections(pair: Pair) -> None:
    for i, expected in enumerate(pair.theirs["detections"]):
        rows, partner = match_detections(pair, i)
        if "masks" not in expected:
            continue
        found, wanted = pair.ours["detections"], expected["masks"][:, 0]
        masks = found.masks[i, rows][partner]
        np.testing.assert_allclose(masks, wanted, atol=2e-3)
        assert wanted.std() > 0.1
        size = tuple(pair.batch.image_size[i].astype(int).tolist())
        drawn = paste_masks(masks, found.boxes[i, rows][partner], *size)
        ours = np.stack([drawn.decode(row) for row in range(len(rows))]).astype(bool)
        theirs = their_drawing(expected, size)
        assert ours.shape == theirs.shape
        assert theirs.any(axis=(1, 2)).mean() > 0.5
        # Masks that are empty on both sides agree.
        both, either = (f(ours, theirs).sum((1, 2)) for f in (np.logical_and, np.logical_or))
        assert (both >= 0.99 * either).all()


def their_drawing(expected: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Their masks in the image, bool [d, h, w]."""
    import torch
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, boxes = torch.from_numpy(expected["masks"]), torch.from_numpy(expected["boxes"])
    return (paste_masks_in_image(masks, boxes, size) >= 0.5).numpy()[:, 0]


def test_weights_return_bit_for_bit(pair: Pair) -> None:
    exported = export_state(*pair.states, detector_layout(pair.config, pair.num_classes))
    state = pair.peer.state_dict()
    theirs = {k: v.numpy() for k, v in state.items() if "num_batches" not in k}
    assert exported.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(exported[name], array, err_msg=name)
