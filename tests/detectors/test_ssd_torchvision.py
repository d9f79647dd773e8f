"""SSD against torchvision's ssd300_vgg16 with random weights, on real images."""

import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import Config, LossConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import detector_layout, load_detector
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.models import SSD300_VGG16
from harmonic_jax.structures import Batch, GroundTruth, Predictions

NUM_CLASSES = 7
NUM_IMAGES = 3
CONFIG = Config(name="ssd", model=SSD300_VGG16, loss=LossConfig(hardet=False, smooth_l1_beta=1.0))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """torchvision's model; its heads are large enough for scores far from those of equality."""
    try:
        import torchvision.models.detection as detection
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    import torch

    torch.manual_seed(0)
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    with torch.no_grad():
        model.backbone.scale_weight.uniform_(10, 30)
        # Features of 0..255 inputs reach the heads unnormalised but for the first level.
        for i, convs in enumerate(
            zip(
                model.head.classification_head.module_list,
                model.head.regression_head.module_list,
                strict=True,
            )
        ):
            for conv, scale in zip(convs, (1.0, 0.2), strict=True):
                conv.weight *= scale * (0.5 if i == 0 else 0.01)
    return model.eval()


@pytest.fixture(scope="module")
def batch(coco_tiny: Path) -> Batch:
    """Images warped to 300 x 300, with their objects and room for more."""
    annotations = json.loads(next((coco_tiny / "annotations").glob("*val*.json")).read_text())
    entries = sorted(annotations["images"], key=lambda entry: entry["id"])[:NUM_IMAGES]
    images, boxes = [], np.zeros((NUM_IMAGES, 60, 4), np.float32)
    valid = np.zeros((NUM_IMAGES, 60), bool)
    for i, entry in enumerate(entries):
        image = cv2.imread(str(coco_tiny / "val2017" / entry["file_name"]))[:, :, ::-1]
        images.append(cv2.resize(image, (300, 300)))
        scale = np.tile(300 / np.array([entry["width"], entry["height"]]), 2)
        objects = [a for a in annotations["annotations"] if a["image_id"] == entry["id"]]
        for j, (x, y, w, h) in enumerate(a["bbox"] for a in objects):
            boxes[i, j], valid[i, j] = np.array([x, y, x + w, y + h]) * scale, True
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, valid.shape)
    return Batch(
        images=np.stack(images),
        image_size=np.full((NUM_IMAGES, 2), 300, np.float32),
        scale=np.ones((NUM_IMAGES, 2), np.float32),
        record_index=np.arange(NUM_IMAGES, dtype=np.int32),
        is_real=np.ones(NUM_IMAGES, bool),
        ground_truth=GroundTruth(boxes, labels.astype(np.int32), valid),
    )


@pytest.fixture(scope="module")
def ours(theirs: Any) -> tuple[Any, nnx.State, nnx.State]:
    abstract = nnx.eval_shape(lambda: build_model(SSD300_VGG16, NUM_CLASSES, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, rest))
    state_dict = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return graphdef, *load_detector(*zeros, state_dict, SSD300_VGG16, NUM_CLASSES)


@pytest.fixture(scope="module")
def answers(ours: tuple[Any, nnx.State, nnx.State], batch: Batch) -> tuple:
    """(predictions, detections, loss sums) of the batch."""
    graphdef, params, rest = ours

    @jax.jit
    def run(params: nnx.State, rest: nnx.State, batch: Batch) -> tuple:
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return (
            model(batch.images, batch.image_size),
            detectors.detect(model, batch, CONFIG),
            detectors.loss_sums(model, batch, CONFIG, jax.random.key(0)),
        )

    return run(params, rest, batch)


def as_tensors(batch: Batch) -> list[Any]:
    import torch

    return [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in batch.images]


@pytest.fixture(scope="module")
def their_outputs(theirs: Any, batch: Batch) -> dict[str, Any]:
    """The raw head outputs."""
    import torch

    with torch.no_grad():
        images, _ = theirs.transform(as_tensors(batch))
        return theirs.head(list(theirs.backbone(images.tensors).values()))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_raw_outputs(answers: tuple, their_outputs: dict[str, Any]) -> None:
    predictions: Predictions = answers[0]
    logits = np.concatenate(predictions.cls_logits, axis=1)
    # Background is their first class and our last.
    expected = np.roll(their_outputs["cls_logits"].numpy(), -1, axis=-1)
    assert logits.shape == (NUM_IMAGES, 8732, NUM_CLASSES + 1)
    sizes = [level.shape[1] for level in predictions.cls_logits]
    deltas = their_outputs["bbox_regression"].numpy()
    ends = np.cumsum(sizes)[:-1]
    for actual, wanted in (
        (logits, expected),
        (np.concatenate(predictions.deltas, axis=1), deltas),
    ):
        for a, w in zip(np.split(actual, ends, 1), np.split(wanted, ends, 1), strict=True):
            assert relative_error(a, w) <= 1e-3


def test_detections(theirs: Any, answers: tuple, batch: Batch) -> None:
    import torch

    with torch.no_grad():
        expected = theirs(as_tensors(batch))
    found = answers[1]
    for i, theirs_of_image in enumerate(expected):
        valid = np.asarray(found.valid[i])
        boxes, scores, labels = (
            np.asarray(a[i])[valid] for a in (found.boxes, found.scores, found.labels)
        )
        assert len(scores) == len(theirs_of_image["scores"]) >= 100
        np.testing.assert_allclose(scores, theirs_of_image["scores"], atol=1e-4)
        np.testing.assert_array_equal(labels + 1, theirs_of_image["labels"])
        np.testing.assert_allclose(boxes, theirs_of_image["boxes"], atol=0.05)


def test_loss(theirs: Any, answers: tuple, batch: Batch) -> None:
    import torch

    targets = [
        {
            "boxes": torch.from_numpy(boxes[valid]),
            "labels": torch.from_numpy(labels[valid] + 1).long(),
        }
        for boxes, labels, valid in zip(
            batch.ground_truth.boxes,
            batch.ground_truth.labels,
            batch.ground_truth.valid,
            strict=True,
        )
    ]
    theirs.train()
    with torch.no_grad():
        expected = theirs(as_tensors(batch), targets)
    theirs.eval()
    sums = answers[2]
    assert float(sums.num_positive) > 20
    terms = sums.normalized()
    np.testing.assert_allclose(terms["box_loss"], expected["bbox_regression"], rtol=1e-3)
    np.testing.assert_allclose(terms["cls_loss"], expected["classification"], rtol=1e-3)
    np.testing.assert_allclose(terms["loss"], sum(expected.values()), rtol=1e-3)


def test_the_weights_return(theirs: Any, ours: tuple[Any, nnx.State, nnx.State]) -> None:
    back = export_state(*ours[1:], detector_layout(SSD300_VGG16, NUM_CLASSES))
    state_dict = theirs.state_dict()
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(back[name], tensor.numpy())
