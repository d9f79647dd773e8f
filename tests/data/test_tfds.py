"""TFDS data sets, prepared here with the feature specs of TFDS's own `coco` and `voc`."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from harmonic_jax.config import DataConfig
from harmonic_jax.data import tfds as tfds_data
from harmonic_jax.data.coco import read_coco
from harmonic_jax.data.decode import decode_image
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.scenes import SceneOptions, load_items
from harmonic_jax.data.scenes.builder import FashionScenes, make_scene
from harmonic_jax.data.sources import list_splits, open_source, read_source
from harmonic_jax.data.tfds import COCO_CATEGORY_IDS, read_tfds
from harmonic_jax.data.voc import VOC_CLASSES

Examples = dict[str, list[dict[str, Any]]]


def jpeg(height: int, width: int, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def prepare(
    folder: Path,
    name: str,
    features: dict[str, Any],
    examples: Examples,
    *,
    config: str = "",
    file_format: str = "array_record",
    version: str = "1.0.0",
) -> None:
    """Writes a data set as `tfds build` would, without registering its name."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        url_infos = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(entries) for split, entries in examples.items()}

        def _generate_examples(self, entries: list[Any]) -> Iterator[Any]:
            for i, entry in enumerate(entries):
                yield i, entry | {"image": io.BytesIO(entry["image"])}

    Builder.name = name
    Builder(data_dir=folder, file_format=file_format).download_and_prepare()


COCO_FEATURES = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "image/filename": tfds.features.Text(),
    "image/id": np.int64,
    "objects": tfds.features.Sequence(
        {
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "id": np.int64,
            "is_crowd": np.bool_,
            "label": tfds.features.ClassLabel(num_classes=80),
        }
    ),
}
VOC_FEATURES = {
    "image": tfds.features.Image(),
    "image/filename": tfds.features.Text(),
    "objects": tfds.features.Sequence(
        {
            "bbox": tfds.features.BBoxFeature(),
            "is_difficult": np.bool_,
            "label": tfds.features.ClassLabel(names=VOC_CLASSES),
        }
    ),
}


def coco_object(box: Any, label: int, **fields: Any) -> dict[str, Any]:
    ymin, xmin, ymax, xmax = box
    bbox = tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)
    return {"id": 1, "area": 7, "bbox": bbox, "label": label, "is_crowd": False} | fields


def coco_example(image: bytes, key: int, name: str, *objects: Any) -> dict[str, Any]:
    return {"image": image, "image/id": key, "image/filename": name, "objects": list(objects)}


def voc_example(name: str, corners: Any, label: str, *, is_difficult: bool = False) -> Any:
    """As TFDS writes it: VOC's one-based corners divided by the size, here 50 x 100."""
    xmin, ymin, xmax, ymax = (
        value / side for value, side in zip(corners, (100, 50) * 2, strict=True)
    )
    bbox = tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)
    thing = {"bbox": bbox, "is_difficult": is_difficult, "label": label}
    return {"image": jpeg(50, 100), "image/filename": name, "objects": [thing]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    first = coco_example(
        jpeg(60, 80, shade=1),
        139,
        "000000000139.jpg",
        coco_object((0.0, 0.25, 0.5, 1.0), 0, area=123),
        coco_object((0.5, 0.5, 0.5, 0.75), 79),  # TFDS itself accepts a box without height
        coco_object((0.1, 0.2, 0.3, 0.4), 79, is_crowd=True),
    )
    second = coco_example(jpeg(20, 30, shade=2), 285, "000000000285.jpg")
    thing = coco_object((0.1, 0.2, 0.3, 0.4), 1)
    broken = coco_example(b"\xff\xd8\xff\xe0 nothing", 7, "7", thing)
    examples = {"train": [first, broken, second], "validation": [second]}
    prepare(folder, "coco", COCO_FEATURES, examples, config="2017", version="1.1.0")
    hard = voc_example("000005.jpg", (11, 6, 21, 31), "cat", is_difficult=True)
    voc: dict[str, Examples] = {
        "2007": {
            "train": [voc_example("000012.jpg", (1, 1, 100, 50), "car")],
            "validation": [hard],
            "test": [voc_example("000001.jpg", (48, 24, 95, 37), "dog")],
        },
        "2012": {
            "train": [voc_example("2008_000008.jpg", (5, 5, 9, 9), "horse")],
            "validation": [voc_example("2008_000002.jpg", (5, 5, 9, 9), "tvmonitor")],
        },
    }
    for year, entries in voc.items():
        prepare(folder, "voc", VOC_FEATURES, entries, config=year, version="5.0.0")
    return folder


def read(data_dir: Path, name: str, split: str) -> Any:
    return read_tfds(DataConfig(name=name, root=str(data_dir)), split)


def by_name(source: Any) -> dict[str, Any]:
    """Records by file name: TFDS shuffles when it writes."""
    return {record.file_name: record for record in source.records}


def test_coco_boxes_become_pixels_of_the_file(data_dir: Path, coco_tiny: Path) -> None:
    source = read(data_dir, "coco/2017:1.1.0", "train")  # a version can be named
    assert source.name == "tfds:coco/2017:1.1.0:train"
    assert source.category_ids == COCO_CATEGORY_IDS
    assert source.category_ids == read_coco(coco_tiny, "val2017", DataConfig()).category_ids
    assert len(source.class_names) == 80
    record = by_name(source)["000000000139.jpg"]
    assert (record.image_id, record.height, record.width) == (139, 60, 80)
    np.testing.assert_allclose(record.boxes, [[20, 0, 80, 30], [16, 6, 32, 18]], atol=1e-4)
    assert record.labels.tolist() == [0, 79]
    assert record.is_crowd.tolist() == [False, True]
    assert record.area.tolist() == [123, 7]
    assert len(by_name(source)["000000000285.jpg"].boxes) == 0
    assert {rule: finding.count for rule, finding in source.report.findings.items()} == {
        Reason.UNREADABLE_HEADER: 1,
        Reason.ZERO_SIZE: 1,
        Reason.CROWD: 1,
        Reason.EMPTY_IMAGE: 1,
    }
    assert source.report.examples(Reason.UNREADABLE_HEADER) == ("7",)


def test_image_bytes_follow_their_records_past_dropped_ones(data_dir: Path) -> None:
    source = read(data_dir, "coco/2017", "train+validation")
    images = {"000000000139.jpg": jpeg(60, 80, shade=1), "000000000285.jpg": jpeg(20, 30, shade=2)}
    assert len(source.records) == 3
    for index, record in enumerate(source.records):
        assert source.image_bytes(index) == images[record.file_name]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.image_bytes(0) == source.image_bytes(0)
    # Image 285 occurs in both splits, so ids are positions among all examples.
    assert [record.image_id for record in source.records] == source.positions.tolist()


def test_voc_corners_agree_with_the_xml_reader(data_dir: Path) -> None:
    source = read(data_dir, "voc/2007", "trainval")
    assert source.class_names == VOC_CLASSES
    assert source.category_ids == tuple(range(1, 21))
    records = by_name(source)
    np.testing.assert_allclose(records["000012.jpg"].boxes, [[0, 0, 100, 50]], atol=1e-4)
    np.testing.assert_allclose(records["000005.jpg"].boxes, [[10, 5, 21, 31]], atol=1e-4)
    assert records["000005.jpg"].is_difficult.tolist() == [True]
    np.testing.assert_allclose(records["000005.jpg"].area, [11 * 26], rtol=1e-5)
    assert set(source.report.findings) == {Reason.DIFFICULT}  # rounding is not clipping


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("trainval", {"000012", "000005", "2008_000008", "2008_000002"}),
        ("2007_trainval+2012_trainval", {"000012", "000005", "2008_000008", "2008_000002"}),
        ("val", {"000005", "2008_000002"}),
        ("2007_train+2012_validation", {"000012", "2008_000002"}),
        ("test", {"000001"}),
    ],
)
def test_two_years_of_voc(data_dir: Path, split: str, names: set[str]) -> None:
    source = read(data_dir, "voc/2007+2012", split)
    assert {record.file_name.removesuffix(".jpg") for record in source.records} == names
    assert len(source.records) == len(names)
    assert [record.image_id for record in source.records] == list(range(len(names)))
    assert source.image_bytes(len(names) - 1) == jpeg(50, 100)


def test_splits_are_listed_and_sliced(data_dir: Path) -> None:
    coco, voc = (DataConfig(name=n, root=str(data_dir)) for n in ("coco/2017", "voc/2007+2012"))
    assert set(list_splits(coco)) == {"train", "validation"}
    assert set(list_splits(voc)) == {
        "2007_train", "2007_validation", "2007_test", "2012_train", "2012_validation",
    }  # fmt: skip
    assert len(read(data_dir, "coco/2017", "train[1:]").records) in (1, 2)
    assert len(read(data_dir, "coco/2017", "validation[:1]+validation").records) == 2


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("coco/2014", "train", "tfds build coco/2014 --file_format=array_record --data_dir="),
        ("coco/2017:9.9.9", "train", "'coco/2017:9.9.9' is not prepared"),
        ("voc/2007+2010", "train", "'voc/2010' is not prepared"),
        ("coco/2017", "tset", "has no split 'tset'; it has train, validation"),
        ("voc/2007+2012", "2010_train", "has no split '2010_train'"),
        ("../coco", "train", "data.name is '../coco'"),
    ],
)
def test_what_is_not_there_is_named(data_dir: Path, name: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data_dir, name, split)


def test_the_newest_version_is_opened(tmp_path: Path) -> None:
    features = {key: COCO_FEATURES[key] for key in ("image", "objects")}
    example = {"image": jpeg(20, 30), "objects": [coco_object((0.0, 0.0, 1.0, 1.0), 2)]}
    for version, number in (("2.0.0", 1), ("10.0.0", 3), ("9.0.0", 2)):
        prepare(tmp_path, "toy", features, {"train": [example] * number}, version=version)
    source = read(tmp_path, "toy", "train")
    assert [record.file_name for record in source.records] == [f"example {i}" for i in range(3)]
    assert source.category_ids == tuple(range(1, 81))


def test_other_features_and_formats_are_refused(tmp_path: Path) -> None:
    image = {"image": jpeg(8, 8)}
    prepare(tmp_path, "plain", {"image": tfds.features.Image()}, {"train": [image]})
    with pytest.raises(DataError, match="has features image; detection needs"):
        read(tmp_path, "plain", "train")
    box = tfds.features.BBoxFeature(bbox_format="XYWH")
    label = tfds.features.ClassLabel(num_classes=2)
    odd = {
        "image": tfds.features.Image(),
        "objects": tfds.features.Sequence({"bbox": box, "label": label}),
    }
    prepare(tmp_path, "odd", odd, {"train": [image | {"objects": []}]})
    with pytest.raises(DataError, match="has XYWH boxes"):
        read(tmp_path, "odd", "train")


def test_files_without_random_access_name_the_conversion(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "coco", tmp_path / "coco")
    info = tmp_path / "coco" / "2017" / "1.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    command = f"tfds convert_format --dataset_version_dir={info.parent}"
    with pytest.raises(DataError, match=command):
        read(tmp_path, "coco/2017", "train")


def test_large_splits_are_read_once(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tfds_data, "SAVED_FROM", 1)
    first = read(data_dir, "coco/2017", "train")
    (saved,) = (tmp_path / "harmonic_jax" / "annotations").iterdir()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(tfds_data, "_read", refuse)
        second = read(data_dir, "coco/2017", "train")
        assert second.fingerprint() == first.fingerprint()
        assert second.report == first.report
        assert second.image_bytes(0) == first.image_bytes(0)
        with pytest.raises(AssertionError, match="read again"):
            read(data_dir, "coco/2017", "validation")
    saved.write_bytes(saved.read_bytes()[:-30])  # damaged: made again
    assert read(data_dir, "coco/2017", "train").fingerprint() == first.fingerprint()
    info = next((data_dir / "coco" / "2017" / "1.1.0").glob("*train*"))
    os.utime(info, ns=(1, 1))  # changed files have another name in the cache
    read(data_dir, "coco/2017", "train")
    assert len(list((tmp_path / "harmonic_jax" / "annotations").iterdir())) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # one that cannot be written
    assert len(read(data_dir, "coco/2017", "validation").records) == 1


def test_the_built_in_data_set_prepares_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without TensorFlow, which is not installed; with masks where they are asked for."""
    for config in FashionScenes.BUILDER_CONFIGS:
        monkeypatch.setattr(config, "num_train", 6)
        monkeypatch.setattr(config, "num_validation", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tfds_data, "SAVED_FROM", 1)
    plain, config = (DataConfig(root=str(tmp_path / "new"), masks=m) for m in (False, True))
    without = open_source(plain, "train+validation")
    assert capfd.readouterr().out == ""
    assert set(list_splits(config)) == {"train", "validation"}
    source = open_source(config, "train+validation")
    assert len(list((tmp_path / "cache" / "harmonic_jax" / "annotations").iterdir())) == 1
    assert source.fingerprint() != without.fingerprint()
    assert len(without.class_names) == 10
    assert len(without.records) == 9
    (builder,) = tfds_data.open_builders(config).values()
    examples = (e for part in builder.info.splits for e in builder.as_data_source(part))
    ids = [int(key) for example in examples for key in example["objects"]["id"]]
    assert len(set(ids)) == len(ids) == len(source.records.boxes)
    assert min(ids) > 0  # pycocotools takes 0 for "no match"
    for index, record in enumerate(source.records):
        split, number = record.file_name.removesuffix(".jpg").split("_")
        scene, _ = make_scene(load_items(split), split, int(number), SceneOptions())
        np.testing.assert_array_equal(record.labels, scene.labels)
        np.testing.assert_array_equal(record.boxes, scene.boxes)
        np.testing.assert_array_equal(record.boxes, without.records[index].boxes)
        assert record.masks.areas().tolist() == record.area.tolist() == scene.areas.tolist()
        for row, mask in enumerate(scene.masks):
            np.testing.assert_array_equal(record.masks.decode(row), mask)
        assert without.records[index].masks is None
        pixels = decode_image(source.image_bytes(index), max_pixels=10**6).image.astype(int)
        assert np.abs(pixels - scene.image).mean() < 12  # JPEG, RGB in the right order


def test_what_cannot_be_trained_on_is_refused(data_dir: Path, tmp_path: Path) -> None:
    config = DataConfig(name="coco/2017", root=str(data_dir), masks=True)
    with pytest.raises(DataError, match=r"TFDS data set 'coco/2017' has no instance masks.*=coco"):
        open_source(config, "train")
    broken = coco_example(b"\xff\xd8\xff", 1, "x.jpg")
    prepare(tmp_path, "coco", COCO_FEATURES, {"train": [broken]}, config="2017")
    config = DataConfig(name="coco/2017", root=str(tmp_path))
    assert len(read_source(config, "train").records) == 0
    with pytest.raises(DataError, match="has no usable image") as caught:
        open_source(config, "train")
    assert "unreadable_header" in str(caught.value)


def test_tensorflow_is_never_imported(data_dir: Path, tmp_path: Path) -> None:
    # One that is installed, because libraries look for it, and that ends whoever imports it.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import sys\n"
        "from harmonic_jax.data.sources import DataConfig, open_source\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'folders need no TFDS'\n"
        f"config = DataConfig(name='coco/2017', root={str(data_dir)!r})\n"
        "assert open_source(config, 'validation').image_bytes(0)[:2] == bytes([255, 216])\n"
        "assert 'jax' not in sys.modules, 'data are numpy'\n"
        "try: import tensorflow\n"
        "except SystemExit: print('the trap works')\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "the trap works", done.stderr
