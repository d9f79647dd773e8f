"""JSON files as they arrive: encodings that are read, and one line for what is none."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from harmonic_jax.coco_format.files import read_coco_file
from harmonic_jax.json_file import JsonFileError, read_json

VALUE = [{"name": "Tür", "id": 1}, {"name": "门", "id": 2}]
TEXT = json.dumps(VALUE, ensure_ascii=False)


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_every_encoding_of_json_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(TEXT.encode(encoding))
    assert read_json(tmp_path / "a.json") == VALUE


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.json", TEXT)
    return stream.getvalue()


def _npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b" \n\n", "it is empty"),
        (gzip.compress(TEXT.encode(), mtime=0), "compressed by gzip: unpack it first"),
        (_zip(), "a ZIP archive: unpack it first"),
        (_npy(), "a NumPy array"),
        (pickle.dumps(VALUE), "a pickle, which is not read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page, XML"),
        (TEXT.encode("latin-1", "replace"), "can't decode byte"),
        (TEXT[:-9].encode(), "it ends early, a file that was cut"),
        (TEXT[:-1].encode(), "it ends early, a file that was cut"),
        (b'{"a": 1}\n{"a": 2}\n', r"at .* .Extra data, line 2, column 1"),
        (str(VALUE).encode(), "property name enclosed in double quotes"),
        (b'[{"a": None}]', "at 'None}]' .Expecting value"),
        (b"image_id,score\n1,0.5\n", "at 'image_id,score"),
        (b'[{"a": 1},]', "is not JSON: at "),
        (b'{"a": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_told_in_a_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(JsonFileError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_key_that_is_there_twice_is_refused_unless_both_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lists = '"images": [], "categories": [{"id": 1, "name": "a", "id": 1}], "annotations": []'
    path.write_text(f"{{{lists}}}")
    assert read_coco_file(path, segmentations=True).class_names == ("a",)
    for segmentations in (True, False):
        path.write_text(f'{{{lists}, "annotations": [{{"id": 3}}]}}')
        with pytest.raises(JsonFileError, match="'annotations' is there twice in one object, as"):
            read_coco_file(path, segmentations=segmentations)
        path.write_text(f'{{{lists}, "annotations": []}}'.replace("[]", '[{"id": 1, "id": 2}]', 1))
        with pytest.raises(JsonFileError, match=r"a\.json: 'id' is there twice .* as 1 and as 2"):
            read_coco_file(path, segmentations=segmentations)
