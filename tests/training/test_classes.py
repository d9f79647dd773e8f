"""A detector's labels as a data set's: mapped by name, others dropped and counted."""

import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import ConfigError
from harmonic_jax.structures import Detections
from harmonic_jax.training.classes import MatchedPredictions, match_classes

KNOWN = ("background", "cat", "N/A", "dog", "N/A")


def test_labels_follow_the_names() -> None:
    assert match_classes(KNOWN, ("dog", "cat")).tolist() == [-1, 1, -1, 0, -1]
    assert match_classes(KNOWN, ("N/A",)).tolist() == [-1, -1, 0, -1, -1]
    assert match_classes(("a", "b"), ("a", "b")).tolist() == [0, 1]


def test_all_missing_classes_are_named() -> None:
    with pytest.raises(ConfigError, match="does not know the classes 'fish', 'Cat'"):
        match_classes(KNOWN, ("fish", "dog", "Cat"))


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
