"""Two steps and an evaluation on splits as people have them: broken, without objects, reordered."""

import json
from pathlib import Path

import pytest

from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.log import read_metrics
from tests.cli.coco import write_coco

NASTY = ("[/red]", "\x1b[31mtwo words", "\N{SNOWMAN} & <b>")


def eval_row(run: Path) -> dict[str, float]:
    (row,) = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "eval"]
    return row


@pytest.mark.parametrize(
    ("case", "said", "skipped"),
    [
        ("valid_without_annotations", "step 2: AP -  AP50 -  AP75 -", 0),
        ("valid_without_annotations", "no step is better than another, and best/ holds", 0),
        ("valid_images_broken", "none of the 4 images could be decoded: these numbers say", 4),
        ("train_half_broken", "a training image could not be decoded and is left out: train", 0),
        ("train_half_broken", "truncated  2  padding image in its place", 0),
        ("one_image", "step 2: AP 0", 0),
        ("grey16", "grayscale  4", 0),
    ],
)
def test_reported_splits(
    untrained, trained, cases: Path, case: str, said: str, skipped: int
) -> None:
    status, shown, run = trained(cases / "27-training-on-awkward-splits" / case)
    assert status == 0
    assert shown.count(said) == 1
    assert eval_row(run)["skipped_images"] == skipped
    assert CheckpointStore(run / "best").steps() == (2,)
    report = (run / "report" / "images.txt").read_text()
    assert ("none of the 4 images could be decoded" in report) == bool(skipped)
    assert ("padding image in its place: not trained on, nothing detected" in report) == bool(
        skipped
    )


@pytest.mark.slow
def test_a_network_that_is_trained(trained, tmp_path) -> None:
    """One image in a batch of two, and a validation image of two broken."""
    data = write_coco(tmp_path / "data", "train", number=1)
    status, shown, run = trained(write_coco(data, "valid", broken=(1,)))
    assert status == 0
    assert "1 of 2 images could not be decoded: nothing is detected in them" in shown
    assert eval_row(run)["skipped_images"] == 1


def test_no_image_of_either_split_can_be_decoded(untrained, trained, tmp_path) -> None:
    data = write_coco(tmp_path / "data", "train", broken=(0, 1))
    write_coco(data, "valid", number=3, broken=(0, 1, 2))
    status, shown, _ = trained(data)
    assert status == 0
    assert "no training image could be decoded: nothing was learned" in shown
    assert "none of the 3 images could be decoded" in shown


def test_classes_in_another_order_are_matched_by_name(untrained, trained, tmp_path) -> None:
    """And names may be anything: they are printed as they are, but for what steers a terminal."""
    data = write_coco(tmp_path / "data", "train", names=NASTY)
    write_coco(data, "valid", names=NASTY[::-1], number=3)
    status, shown, run = trained(data)
    assert status == 0
    assert "step 2: AP 1.0000" in shown
    assert "\x1b" not in shown
    assert "\n[/red]  " in shown
    assert "\n\\x1b[31mtwo words" in shown
    assert CheckpointStore(run / "best").read_metadata()["class_names"] == list(NASTY)
    found = json.loads((run / "report" / "detections.json").read_text())
    assert [row["category_id"] for row in found] == [1, 2, 3]  # as the validation data have them


def test_a_class_that_is_not_evaluated_is_said(untrained, trained, tmp_path) -> None:
    data = write_coco(tmp_path / "data", "train")
    write_coco(data, "valid", names=("c", "a"))
    status, shown, _ = trained(data)
    assert status == 0
    assert "coco:data:valid does not have the classes 'b': not evaluated" in shown


def test_a_class_that_was_never_trained_is_refused_before_the_first_step(
    untrained, trained, tmp_path
) -> None:
    data = write_coco(tmp_path / "data", "train")
    write_coco(data, "valid", names=("a", "d", "b", "e"))
    status, shown, run = trained(data)
    assert status == 1
    error = shown.splitlines()[-1]
    assert error == (
        "error: the detector does not know the classes 'd' of the data to evaluate on; its "
        "classes, in any order, are 'a', 'b', 'c'"
    )
    assert not (run / "checkpoints").exists()
    assert "compiling" not in shown
