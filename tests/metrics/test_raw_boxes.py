"""Files of boxes before NMS: what is believed of an archive, and what is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmonic_jax.coco_format.files import coco_file
from harmonic_jax.metrics.files import ground_truth_from_coco, load_raw, save_raw

BIG = 2**63 + 5
CONTENT = {
    "images": [{"id": 3}, {"id": 4}, {"id": BIG}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [],
}
TRUTH = ground_truth_from_coco(coco_file(CONTENT, name="a.json"))
COLUMNS: dict[str, Any] = {
    "image_id": np.array([3, 4, 3]),
    "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
    "scores": np.array([0.5, 0.25, 1.0]),
    "category_id": np.array([2, 9, 9]),
}
OTHER_TYPES = {
    "image_id": COLUMNS["image_id"].astype(">u2"),
    "boxes": np.asfortranarray(COLUMNS["boxes"].astype(np.int8)),
    "scores": COLUMNS["scores"].astype(np.float16),
    "category_id": COLUMNS["category_id"].astype(np.uint64),
}


@pytest.mark.parametrize("columns", [COLUMNS, OTHER_TYPES])
def test_columns_of_any_numbers_are_read(tmp_path: Path, columns: dict[str, Any]) -> None:
    np.savez(tmp_path / "raw.npz", **columns)
    found = load_raw(tmp_path / "raw.npz", TRUTH)
    assert found.image_id.tolist() == [3, 4, 3]
    assert found.boxes.tolist() == COLUMNS["boxes"].tolist()
    assert found.labels.tolist() == [0, 1, 1]
    np.savez(tmp_path / "raw.npz", **{name: column[:0] for name, column in columns.items()})
    assert len(load_raw(tmp_path / "raw.npz", TRUTH).boxes) == 0


def test_ids_of_64_bits_and_more_survive(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw.npz", **(COLUMNS | {"image_id": np.array([3, BIG, 3], np.uint64)}))
    found = load_raw(tmp_path / "raw.npz", TRUTH)
    assert TRUTH.original_ids[int(found.image_id[1])] == BIG
    save_raw(tmp_path / "again.npz", found, TRUTH.category_ids)
    again = load_raw(tmp_path / "again.npz", TRUTH)
    assert again.image_id.tolist() == found.image_id.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": np.array(["3", "4", "3"])}, "image_id has type <U1; it must convert to int"),
        ({"category_id": np.array([2.5, 4, 3])}, "category_id has type float64; it must convert"),
        ({"image_id": np.array([3, 4, "3"], object)}, "Object arrays cannot be loaded"),
        ({"scores": np.array([1, 2, 3], complex)}, "scores has type complex128; it must convert"),
        ({"scores": np.array([0.5, 0.1])}, r"scores has shape \(2,\)"),
        ({"boxes": np.array(0.5)}, "image_id has shape"),
        ({"boxes": np.zeros((3, 3))}, r"boxes has shape \(3, 3\)"),
        ({"boxes": np.full((3, 4), np.nan)}, r"detection 0 of image 3 has boxes \[nan, nan"),
        ({"scores": np.array([1, 2, np.inf])}, r"detection 2 of image 3 has scores inf"),
        ({"image_id": np.array([3, 4, 7])}, r"raw\.npz\[2\]: image_id 7 is not in the ground tru"),
        ({"category_id": np.array([2, 3, 9])}, r"raw\.npz\[1\]: category_id 3 is not in the gro"),
        ({"category_id": np.array([2, 2**64 - 7, 9], np.uint64)}, r"category_id .* is not in the"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, change: Any, message: str) -> None:
    np.savez(tmp_path / "raw.npz", **(COLUMNS | change))
    with pytest.raises(ValueError, match=message) as error:
        load_raw(tmp_path / "raw.npz", TRUTH)
    assert "raw.npz" in str(error.value)
    assert "\n" not in str(error.value)


def array_file(shape: str, dtype: str = "<f8", data: bytes = b"\0" * 32) -> bytes:
    """A NumPy array whose header claims a shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "boxes",
    [
        array_file("(10000000000000, 4)"),
        array_file("(2, 4)"),  # 64 bytes, of which 32 are there
        array_file("(1, 4)", "|O"),
        array_file("(" * 2000),
        b"boxes",
    ],
)
def test_a_header_is_believed_only_as_far_as_there_are_bytes(tmp_path: Path, boxes: bytes) -> None:
    np.savez(tmp_path / "raw.npz", **{k: v for k, v in COLUMNS.items() if k != "boxes"})
    with zipfile.ZipFile(tmp_path / "raw.npz", "a") as archive:
        archive.writestr("boxes.npy", boxes)
    with pytest.raises(ValueError, match="not a file of boxes before NMS: ") as error:
        load_raw(tmp_path / "raw.npz", TRUTH)
    assert "\n" not in str(error.value)


def test_an_archive_that_would_grow_without_end_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harmonic_jax.metrics.files.MOST_BYTES", 10**6)
    np.savez_compressed(tmp_path / "raw.npz", **(COLUMNS | {"scores": np.zeros(10**6)}))
    assert (tmp_path / "raw.npz").stat().st_size < 20_000
    with pytest.raises(ValueError, match="its columns are"):
        load_raw(tmp_path / "raw.npz", TRUTH)


def test_the_kind_of_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    path, other = tmp_path / "raw.json", tmp_path / "raw.npz"
    np.savez(other, **COLUMNS)
    path.write_bytes(other.read_bytes())
    assert len(load_raw(path, TRUTH).boxes) == 3
    path.write_bytes(other.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"raw\.json"):
        load_raw(path, TRUTH)
    np.savez(other, a=np.zeros(3))
    with pytest.raises(ValueError, match="it has no image_id, boxes, scores, category_id"):
        load_raw(other, TRUTH)
    entry = {"image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}
    other.write_text(json.dumps([entry]))
    assert load_raw(other, TRUTH).boxes.tolist() == [[1, 2, 4, 6]]
    with pytest.raises(FileNotFoundError):
        load_raw(tmp_path / "absent" / "raw.npz", TRUTH)
