"""Files of class names, as systems and people write them."""

from pathlib import Path

import pytest

from harmonic_jax.data.folders import read_class_names
from harmonic_jax.data.records import DataError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_line_ends_and_spaces_are_no_part_of_a_name(
    tmp_path: Path, encoding: str, end: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(end.join(["cat", "", " traffic  light\t", "猫"]).encode(encoding))
    assert read_class_names(path) == ("cat", "traffic light", "猫")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has none"),
        (b" \n\r\n", "it has none"),
        (b"cat\ndog\n cat\n", "each once; line 3 repeats 'cat' of line 1"),
        ("é\ne\u0301".encode(), "line 2 repeats"),
        (b"cat\nh\xf6hle", "is not UTF-8 text: .* in line 2"),
        (b"\xff\xfe\xff", "is not UTF-16 text"),
        ("cat\ndog".encode("utf-16-le"), "is no text: it has a zero byte in line 1"),
        (b"cat\n\x80\x04\x95", "is not UTF-8 text: .* in line 2"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}.*{message}"):
        read_class_names(path)


def test_a_placeholder_may_be_there_more_than_once(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("cat\nN/A\ndog\nN/A\n")
    assert read_class_names(path, repeatable="N/A") == ("cat", "N/A", "dog", "N/A")
    path.write_text("cat\nN/A\ncat\n")
    with pytest.raises(DataError, match="line 3 repeats 'cat'"):
        read_class_names(path, repeatable="N/A")
