"""From the padded output of a detector to numbers and files, masks too; labels of other data sets
are matched by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.cli.evaluate import main as eval_main
from harmonic_jax.config import Config, ConfigError, DataConfig, TrainConfig
from harmonic_jax.data.voc import VOC_CLASSES
from harmonic_jax.masks import encode_masks
from harmonic_jax.metrics.files import load_coco_results, save_coco_annotations
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.evaluation import (
    Evaluation,
    MatchedPredictions,
    classes_found,
    evaluate,
    match_classes,
    match_sources,
)
from harmonic_jax.training.results import write_results
from harmonic_jax.training.sharding import data_mesh
from tests.data.fake_source import FakeSource, encode, make_record, noise
from tests.data.voc_folder import SIZE, read, thing, write

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
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers.pop("at_score")[0]["class"] == "all"
    assert numbers == evaluation.metrics
    assert "masks" in capsys.readouterr().out.splitlines()


# Classes.

KNOWN = ("background", "cat", "N/A", "dog", "N/A")


def test_labels_follow_the_names() -> None:
    assert match_classes(KNOWN, ("dog", "cat")).tolist() == [-1, 1, -1, 0, -1]
    assert match_classes(KNOWN, ("N/A",)).tolist() == [-1, -1, 0, -1, -1]
    assert match_classes(("a", "b"), ("a", "b")).tolist() == [0, 1]


def test_all_missing_classes_are_named() -> None:
    with pytest.raises(ConfigError, match="does not know the classes 'fish', 'Cat'"):
        match_classes(KNOWN, ("fish", "dog", "Cat"))


def test_a_class_without_objects_need_not_be_known() -> None:
    labels = match_classes(("zebra", "cat"), ("ant", "cat", "dog"), found=["cat"])
    assert labels.tolist() == [-1, 1]
    with pytest.raises(ConfigError, match="does not know the classes 'dog' of the"):
        match_classes(("zebra", "cat"), ("ant", "cat", "dog"), found=["cat", "dog"])


def test_a_run_is_told_what_its_numbers_do_not_say(tmp_path: Path) -> None:
    cat, dog, pen = (SIZE + thing(name) for name in ("cat", "dog", "pen"))
    write(tmp_path, {"a": cat, "b": cat})
    write(tmp_path, {"b": cat, "c": dog, "d": pen}, split="val")
    train, val = read(tmp_path), read(tmp_path, "val")
    assert classes_found(val) == ["cat", "dog", "pen"]
    labels, notes = match_sources(train, val)
    assert labels.tolist() == [0, 1, 2]
    assert notes == [
        "voc:" + tmp_path.name + ":train has no object of 'dog', 'pen' to learn from",
        "1 of 3 images of voc:" + tmp_path.name + ":val are also trained on ('b.jpg'): "
        "they say little about new ones",
    ]
    write(tmp_path / "new", {"b": cat})  # all of VOC's classes
    labels, notes = match_sources(train, read(tmp_path / "new"))
    assert labels.tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog"), -1]
    assert notes == ["voc:new:train does not have the classes 'pen': not evaluated"]
    write(tmp_path / "new", {"b": cat + thing("ant")})
    with pytest.raises(ConfigError, match="does not know the classes 'ant' of the"):
        match_sources(train, read(tmp_path / "new"))


def test_other_classes_are_dropped_and_counted() -> None:
    labels = jnp.array([[3, 0, 1, 0], [2, 1, 3, 3]])
    valid = jnp.array([[True, True, True, False], [True, True, True, False]])
    boxes = jnp.arange(32.0).reshape(2, 4, 4)
    found = Detections(boxes, jnp.ones((2, 4)), labels, valid)
    predict = MatchedPredictions(
        lambda variables, batch: (found, jnp.array([5, 6])), match_classes(KNOWN, ("dog", "cat"))
    )
    for times in (1, 2):
        detections, index = predict(None, None)
        assert predict.num_dropped == 2 * times  # the padded rows are none
    np.testing.assert_array_equal(detections.valid, [[1, 0, 1, 0], [0, 1, 1, 0]])
    kept = np.asarray(detections.labels)[np.asarray(detections.valid)]
    np.testing.assert_array_equal(kept, [0, 1, 1, 0])
    np.testing.assert_array_equal(detections.boxes, boxes)
    assert detections.labels.min() >= 0
    np.testing.assert_array_equal(index, [5, 6])
