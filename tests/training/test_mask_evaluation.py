"""Masks from the padded output of a detector to mask AP, files and pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from harmonic_jax.cli.evaluate import main as eval_main
from harmonic_jax.config import Config, DataConfig, TrainConfig
from harmonic_jax.masks import encode_masks
from harmonic_jax.metrics.files import load_coco_results, save_coco_annotations
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.evaluation import Evaluation, evaluate
from harmonic_jax.training.results import write_results
from harmonic_jax.training.sharding import data_mesh
from tests.data.fake_source import FakeSource, encode, make_record, noise

PADDED = 5  # detections an image


def make_source(*, unknown: tuple[int, ...] = ()) -> FakeSource:
    """Five images of two shapes with one to three ellipses; those of `unknown` have no mask."""
    rng = np.random.default_rng(0)
    records, files = [], []
    for index in range(5):
        height, width = (60, 80) if index % 2 else (80, 60)
        masks = np.zeros((1 + index % 3, height, width), np.uint8)
        for row, mask in enumerate(masks):
            centre = (int(rng.integers(15, width - 15)), int(rng.integers(15, height - 15)))
            cv2.ellipse(mask, centre, (13, 7 + 2 * row), 20.0 * row, 0, 360, 1, cv2.FILLED)
        boxes = encode_masks(masks).boxes()
        if index in unknown:
            masks[:] = 0
        records.append(make_record(index, height=height, width=width, boxes=boxes, masks=masks))
        files.append(encode(noise(height, width, seed=index)))
    return FakeSource(records, files)


def exact_step(source: FakeSource, *, spoil: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A detector that knows the boxes; its masks are `spoil` of the true ones on a 28 x 28 grid."""
    truth = make_source()

    def predict(_: Any, batch: Batch) -> tuple[Detections, np.ndarray]:
        index = np.asarray(batch.record_index)
        size = len(index)
        boxes = np.full((size, PADDED, 4), np.nan, np.float32)
        labels, valid = np.zeros((size, PADDED), np.int32), np.zeros((size, PADDED), bool)
        masks = np.full((size, PADDED, 28, 28), np.nan, np.float32)
        for row in np.flatnonzero(np.asarray(batch.is_real)):
            record, drawn = source.records[index[row]], truth.records[index[row]].masks
            for slot, (x1, y1, x2, y2) in enumerate(record.boxes.astype(int)):
                pixels = drawn.decode(slot)[y1:y2, x1:x2].astype(np.float32)
                grid = cv2.resize(pixels, (28, 28), interpolation=cv2.INTER_AREA)
                masks[row, slot + 1] = spoil(grid)  # the first slot stays invalid
                boxes[row, slot + 1] = record.boxes[slot]
                labels[row, slot + 1], valid[row, slot + 1] = record.labels[slot], True
        scores = np.where(valid, 0.9, np.nan).astype(np.float32)
        return Detections(boxes, scores, labels, valid, masks), index

    return predict


def run(source: FakeSource, spoil: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Evaluation:
    config = Config(
        name="masks",
        data=DataConfig(short_sides=(64,), max_side=96, masks=True),
        train=TrainConfig(steps=1, batch_size=2),
    )
    mesh = data_mesh(jax.devices()[:1])
    step = exact_step(source, spoil=spoil)
    return evaluate(step, None, source, config, mesh, track=lambda batches, *_: iter(batches))


def test_good_masks_score_and_bad_ones_do_not() -> None:
    source = make_source()
    good, bad = run(source), run(source, lambda grid: 1 - grid)
    assert good.metrics["AP"] == bad.metrics["AP"] == pytest.approx(1.0)
    assert good.metrics["mask_AP50"] == pytest.approx(1.0)
    assert good.metrics["mask_AP"] > 0.85  # 28 x 28 cells do not hold every pixel
    assert bad.metrics["mask_AP50"] == 0.0
    assert {key for key in good.metrics if key.startswith("mask_")} == {
        f"mask_{key}" for key in good.metrics if not key.startswith("mask_")
    }


def test_an_unknown_mask_counts_neither_way() -> None:
    source = make_source(unknown=(1, 2))
    evaluation = run(source)
    assert evaluation.metrics["AP"] == pytest.approx(1.0)
    assert evaluation.metrics["AR_100"] == pytest.approx(1.0)
    assert evaluation.metrics["mask_AR_100"] > 0.85
    assert (evaluation.ground_truth.masks.areas() == 0).sum() == 2 + 3


def test_masks_are_those_of_their_boxes_in_the_order_of_the_images() -> None:
    evaluation = run(make_source())
    found = evaluation.detections
    assert found.image_id.tolist() == sorted(found.image_id.tolist())
    assert np.abs(found.masks.boxes() - found.boxes).max() <= 1.5
    for row, image in enumerate(found.image_id.tolist()):
        height, width = found.masks.sizes[row]
        assert (height, width) == ((60, 80) if (image - 1000) % 2 else (80, 60))


def test_without_masks_on_either_side_there_are_no_mask_numbers() -> None:
    source = make_source()
    plain = FakeSource(
        [make_record(i, height=r.height, width=r.width, boxes=r.boxes)
         for i, r in enumerate(source.records)], source.files,
    )  # fmt: skip
    evaluation = run(plain)
    assert not any(key.startswith("mask_") for key in evaluation.metrics)
    assert evaluation.detections.masks is not None


def test_files_hold_the_masks_and_score_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source()
    evaluation = run(source)
    files = write_results(tmp_path, evaluation, source, data=DataConfig())
    assert {path.name for path in files} == {
        "metrics.json", "metrics.txt", "detections.json", "images.txt", "detections.png",
    }  # fmt: skip
    assert "\nmasks\n" in (tmp_path / "metrics.txt").read_text()
    again = load_coco_results(tmp_path / "detections.json", evaluation.ground_truth)
    assert list(again.masks) == list(evaluation.detections.masks)
    save_coco_annotations(tmp_path / "truth.json", evaluation.ground_truth)
    arguments = ["--predictions", str(tmp_path / "detections.json"),
                 "--annotations", str(tmp_path / "truth.json"),
                 "--json", str(tmp_path / "out.json")]  # fmt: skip
    assert eval_main(arguments) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == evaluation.metrics
    assert "masks" in capsys.readouterr().out.splitlines()
