"""Files are whole or not there, links are replaced, and a full disk is said with its space."""

import errno
import os
from pathlib import Path

import pytest

from harmonic_jax.files import replacing, write_bytes, write_text


def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_text(path, "one")
    write_text(path, "zwei \N{SNOWMAN} \udcff")
    assert path.read_bytes().decode() == "zwei \N{SNOWMAN} \\udcff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_text(path, "before")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        _ = partial.write_text("half") / 0
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_its_target_is_not_touched(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    write_text(link, "new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)


def test_new_files_have_the_permissions_that_files_get(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    modes = {(tmp_path / name).stat().st_mode for name in ("ours", "plain")}
    assert len(modes) == 1


def test_a_device_is_written_to_as_it_is() -> None:
    write_text("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


def test_errors_name_the_file_and_a_full_disk_its_space(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    full = pytest.raises(OSError, match=r"No space left on device, \d+\.\d MiB free")
    with full as caught, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing:
        write_text(tmp_path / "no" / "folder.json", "x")
    assert missing.value.filename == str(tmp_path / "no" / "folder.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full_says_so() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_text("/dev/full", "x")
    assert caught.value.filename == "/dev/full"
