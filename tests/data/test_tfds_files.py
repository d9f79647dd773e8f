"""Prepared TFDS folders that are damaged, or that name code to run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.records import DataError
from harmonic_jax.data.tfds import read_tfds, tfds_splits
from tests.data.fake_source import encode, noise
from tests.data.test_tfds import COCO_FEATURES, coco_example, coco_object, prepare

INFO, FEATURES = "dataset_info.json", "features.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    examples = [
        coco_example(
            encode(noise(60, 80, seed=i)), i, f"{i}.png", coco_object((0.1, 0.2, 0.5, 0.6), i)
        )
        for i in range(6)
    ]
    prepare(folder, "toy", COCO_FEATURES, {"train": examples})
    return folder


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tfds"))


def version(root: Path) -> Path:
    return root / "toy" / "1.0.0"


def shard(root: Path) -> Path:
    return next(version(root).glob("*array_record*"))


def read(root: Path) -> Any:
    return read_tfds(DataConfig(name="toy", root=str(root)), "train")


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


EVIL = {"pythonClassName": "evil_features.Feature", "text": {}}
OLD = {"type": "evil_features.Feature", "content": {}}
PLACES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a feature": lambda f: f["featuresDict"]["features"].update(more=EVIL),
    "of an object": lambda f: f["featuresDict"]["features"]["objects"]["sequence"]["feature"][
        "featuresDict"
    ]["features"].update(more=EVIL),
    "as older versions wrote it": lambda f: (f.clear(), f.update(OLD)),
    "JSON in a text": lambda f: f["featuresDict"]["features"].update(
        more={
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "jsonFeature": {"json": json.dumps({"feature": OLD, "length": None})},
        }
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_module_that_a_file_names_is_imported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_features.py").write_text("open('it ran', 'w')\n")
    path = version(root) / FEATURES
    content = json.loads(path.read_text())
    PLACES[place](content)
    path.write_text(json.dumps(content))
    assert f"{path} names the feature 'evil_features.Feature'" in refusal(root)
    assert "evil_features" not in sys.modules
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("name", [INFO, FEATURES])
@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"\xff\xfe", b"{}", b"[" * 10**5, b'{"a": NaN}']
)
def test_a_damaged_description_is_named(root: Path, name: str, content: bytes | None) -> None:
    path = version(root) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    told = refusal(root)
    assert told.startswith(str(path)) or (content is None and "is not prepared" in told)
    with pytest.raises(DataError, match=name if content is not None else "toy"):
        tfds_splits(DataConfig(name="toy", root=str(root)))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (INFO, '"6"', '"six"'),
        (INFO, '"6"', '"99999999999999999999"'),
        (INFO, '"array_record"', '"arrays"'),
        (INFO, '"splits"', '"split"'),
        (FEATURES, '"REL_YXYX"', '"SIDEWAYS"'),
        (FEATURES, '"image":', '"picture":'),
        (FEATURES, "bounding_boxes.BBoxFeature", "text_feature.Text"),
        (FEATURES, "class_label_feature.ClassLabel", "text_feature.Text"),
    ],
)
def test_a_description_of_wrong_values_is_refused(
    root: Path, name: str, old: str, new: str
) -> None:
    path = version(root) / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    told = refusal(root)
    assert str(version(root)) in told or "TFDS data set 'toy'" in told


@pytest.mark.parametrize("content", [b"a\nb\n", b"\xff\n", b"a\n" * 80])
def test_a_damaged_file_of_names_is_named(root: Path, content: bytes) -> None:
    """TFDS passes over it, and the classes lose their names."""
    path = version(root) / "objects-label.labels.txt"
    path.write_bytes(content)
    assert refusal(root).startswith(str(path))


def test_a_damaged_file_is_named(root: Path) -> None:
    source, path = read(root), shard(root)
    data = path.read_bytes()
    for kept in (0.0, 0.3, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * kept)])
        assert refusal(root).startswith(f"{path} ")
    changed = bytearray(data)
    changed[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(changed)
    assert refusal(root).startswith(f"{path} cannot be read (example ")
    for place in range(0, len(data), 1000):
        changed[place] ^= 1
    path.write_bytes(changed)  # damage that comes later is an unreadable image
    with pytest.raises(OSError, match="example 0"):
        source.image_bytes(0)
    path.rename(path.with_name("elsewhere"))
    assert refusal(root).startswith(f"{path} holds 0 records")


def test_files_of_other_lengths_and_places_are_refused(root: Path) -> None:
    info = version(root) / INFO
    text = info.read_text()
    info.write_text(text.replace('"6"', '"5"'))
    assert f"{shard(root)} holds 6 records, and {info} says 5" in refusal(root)
    info.write_text(text.replace("{DATASET}-", "../../{DATASET}-"))
    assert "which is not in its folder" in refusal(root)


def test_what_an_interrupted_build_left_is_not_opened(root: Path) -> None:
    left = version(root).with_name("incomplete.ABC999_1.0.0")
    shutil.copytree(version(root), left)
    (left / INFO).write_text("{")
    assert len(read(root).records) == 6
