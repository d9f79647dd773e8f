"""A detector's labels as a data set's: mapped by name, others dropped and counted."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.data.voc import VOC_CLASSES
from harmonic_jax.structures import Detections
from harmonic_jax.training.evaluation import (
    MatchedPredictions,
    classes_found,
    match_classes,
    match_sources,
)
from tests.data.voc_folder import SIZE, read, thing, write

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
    with pytest.raises(ConfigError, match="does not know the classes 'dog'; "):
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
    with pytest.raises(ConfigError, match="voc:new:train has 'ant', which voc:"):
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
