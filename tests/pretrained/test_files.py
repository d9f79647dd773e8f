"""Reading weights: what is refused and why, and that nothing in a file is run."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from harmonic_jax.pretrained import WeightsError, pytorch_file, read_state_dict, write_state_dict

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": np.array(7),
}


def assert_is_state(state_dict: dict[str, np.ndarray]) -> None:
    assert state_dict.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(state_dict[name], array)
        assert state_dict[name].dtype == array.dtype


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert "weights_only" not in text
    return text


def with_header(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file made by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights"])
def test_safetensors_whatever_it_is_called(tmp_path: Path, name: str, prefix: str) -> None:
    path = tmp_path / name
    safetensors.numpy.save_file({prefix + name: array for name, array in STATE.items()}, path)
    assert_is_state(read_state_dict(path))
    path.write_bytes(path.read_bytes()[:-20])
    assert "is cut or damaged, or" in refusal(path)


FOREIGN = {
    "page.pth": (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "packed.pth": (b"\x1f\x8b\x08" + bytes(100), "unpack it"),
    "about.json": (b'{"weights": "elsewhere"}', "is a text"),
    "script.pth": (b"cposix\nsystem\n(S'true'\ntR.", "is a text"),  # a pickle of protocol 0
    "empty.safetensors": (b"", "is empty"),
    "noise.safetensors": (bytes(range(7, 200)), "of another format"),
    "long.safetensors": (struct.pack("<Q", 2**63) + b"{}" + bytes(99), "of another format"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content)
    text = refusal(path)
    assert words in text
    assert "legal are .safetensors and PyTorch's .pth" in text


def tensor_header(dtype: Any, shape: list[int], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


F32 = tensor_header("F32", [2], 0, 8)
DAMAGED: dict[str, tuple[Any, int]] = {  # the header, and how many bytes follow
    "header cut": (b'{"a":', 0),
    "no json": (b"{oh}", 0),
    "deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 0),
    "no offsets": (b'{"a": {"dtype": "F32", "shape": [1]}}', 0),
    "metadata of a number": (b'{"__metadata__": {"step": 1}}', 0),
    "cut": ({"a": F32}, 7),
    "overlap": ({"a": F32, "b": tensor_header("F32", [1], 4, 8)}, 8),
    "hole": ({"a": tensor_header("F32", [1], 4, 8)}, 8),
    "negative": ({"a": tensor_header("F32", [-1], 0, 4)}, 4),
    "vast": ({"a": tensor_header("F32", [2**40, 2**40], 0, 4)}, 4),
    "other size": ({"a": tensor_header("F32", [3], 0, 4)}, 4),
    "no such type": ({"a": tensor_header("Q9", [8], 0, 8)}, 8),
    "one name twice": (
        b'{"a": %b, "a": %b}'
        % tuple(json.dumps(tensor_header(dtype, [2], 0, 8)).encode() for dtype in ("F32", "U32")),
        8,
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    header, size = DAMAGED[name]
    length = 20 if name == "header cut" else None
    path = with_header(tmp_path / "w.safetensors", header, bytes(size), length=length)
    assert "is cut or damaged, or" in refusal(path)


def test_a_message_is_a_line_whatever_names_hold() -> None:
    text = str(WeightsError("a\nb" + "c" * 10_000))
    assert text.startswith("a\\nbccc")
    assert len(text) < 2010


@pytest.mark.parametrize(
    ("dtype", "num_bytes", "name"),
    [
        *(("BF16", 2, "bfloat16"), ("F16", 2, "float16"), ("F64", 8, "float64"), ("I8", 1, "int8")),
        *(("F8_E4M3", 1, None), ("F8_E8M0", 1, None), ("F4", 0.5, None), ("F6_E2M3", 0.75, None)),
    ],
)
def test_types_are_read_or_refused(
    tmp_path: Path, dtype: str, num_bytes: float, name: str | None
) -> None:
    size = int(8 * num_bytes)
    header = {"a": tensor_header(dtype, [8], 0, size)}
    path = with_header(tmp_path / "w.safetensors", header, bytes(size))
    if name is None:
        assert "or not of plain numbers" in refusal(path)
    else:
        array = read_state_dict(path)["a"]
        assert (array.dtype.name, array.shape) == (name, (8,))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        read_state_dict(tmp_path / "nothing.pth")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")  # which would be waited for
    assert "is a pipe or a device" in refusal(tmp_path / "pipe.pth")


def test_writing_names_the_file_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_state_dict(path, STATE)
    assert_is_state(read_state_dict(path))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        write_state_dict(path, {})
    assert path.read_bytes() == before
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        write_state_dict(tmp_path / "w.npz", STATE)
    with pytest.raises(OSError, match=r"none/w\.safetensors"):
        write_state_dict(tmp_path / "none" / "w.safetensors", STATE)
    kept = tmp_path / "kept"
    (tmp_path / "link.safetensors").symlink_to(kept)
    write_state_dict(tmp_path / "link.safetensors", STATE)
    assert not kept.exists()  # the link is replaced, not followed
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "link.safetensors"}


# PyTorch writes the files, and takes no part in reading them.


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch writes .pth files")


def tensors(torch: Any, prefix: str = "") -> dict[str, Any]:
    return {prefix + name: torch.from_numpy(array) for name, array in STATE.items()}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_pth_whatever_it_is_called(torch: Any, tmp_path: Path, name: str, is_zip: bool) -> None:
    path = tmp_path / name
    torch.save(tensors(torch), path, _use_new_zipfile_serialization=is_zip)
    assert_is_state(read_state_dict(path))
    whole = path.read_bytes()
    for length in (len(whole) - 20, len(whole) // 2, 100, 12):
        path.write_bytes(whole[:length])
        assert "cut or damaged" in refusal(path)


WRAPPED = {
    "model": lambda t, s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
    "torchvision's": lambda t, s: {"model": s, "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "state_dict": lambda t, s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda t, s: {"model_state_dict": s, "loss": 0.5},
    "ema": lambda t, s: {"ema": {"module": s, "updates": 7}},
    "model before its average": lambda t, s: {"model_ema": {"a": t.ones(1)}, "model": s},
    "module.": lambda t, s: tensors(t, "module."),
    "model.": lambda t, s: {"state_dict": tensors(t, "model.")},
    "compiled and parallel": lambda t, s: tensors(t, "module._orig_mod."),
    "averaged": lambda t, s: {"n_averaged": t.tensor(3)} | tensors(t, "module."),
    "parameters": lambda t, s: {n: t.nn.Parameter(v, v.is_floating_point()) for n, v in s.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_training_scripts_put_around_is_taken_off(
    torch: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(WRAPPED[name](torch, tensors(torch)), path)
    assert_is_state(read_state_dict(path))


class MakesFolder:
    """Unpickling this runs os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(torch: Any, tmp_path: Path, is_zip: bool) -> None:
    path, folder = tmp_path / "evil.pth", tmp_path / "made"
    content = {"model": {"weight": MakesFolder(folder)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert "it holds posix.mkdir, which is no tensor" in refusal(path)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(content, protocol))  # without anything of PyTorch's
        refusal(path)
    assert not folder.exists()
    pickle.loads(path.read_bytes())  # the file is what it claims to be
    assert folder.exists()


def test_other_contents_are_named(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for content, words in (
        ([1, 2], "it is a list"),
        (torch.zeros(3), "it is a tensor"),
        ({}, "a dict of nothing"),
        ({"model": {"weight": 1}}, "a dict of 'weight'"),
        ({"epoch": 3, "weight": torch.zeros(3)}, "a dict of 'epoch', 'weight'"),
        ({1: torch.zeros(3)}, "a dict of 1"),
        ({"model": {"model": {"model": {"model": {}}}}}, "a dict of 'model'"),
    ):
        torch.save(content, path)
        assert words in refusal(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "it holds torch.nn.modules.linear.Linear" in refusal(path)
    for content in (torch.eye(3).to_sparse(), torch.zeros(3).to(torch.float8_e4m3fn)):
        torch.save({"a": content}, path)
        assert "a tensor that is no plain array (torch." in refusal(path)
    torch.save({"a": torch.zeros(1).expand(10**13)}, path)
    assert "a tensor claims more numbers than there are" in refusal(path)
    torch.save({"a": torch.full((2,), 1.5).to(torch.bfloat16)}, path)
    array = read_state_dict(path)["a"]
    assert (array.dtype.name, array.tolist()) == ("bfloat16", [1.5, 1.5])


def test_other_archives_are_refused(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    np.savez(tmp_path / "w.npz", **STATE)
    (tmp_path / "w.npz").replace(path)
    assert "NumPy's (.npz)" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    assert "a zip archive, not PyTorch's" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/program.py"):
            archive.writestr(f"model/{name}", "")
    assert "a TorchScript program" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10**6))
    assert "claims more bytes than it has" in refusal(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (5, (2,), (1,)),
        (0, (2, 2), (5, 1)),
        (-1, (1,), (1,)),
        (3, (2,), (-1,)),
        (0, (-1,), (1,)),
        (6, (1,), (1,)),
        (2**70, (1,), (1,)),
    ],
)
def test_a_tensor_lies_within_its_numbers(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Another one would show memory that is not the file's."""
    storage = pytorch_file._Storage(np.dtype("f4"), "0", 6)
    tensor = pytorch_file._Tensor(storage, offset, shape, strides)
    data = np.arange(6, dtype="f4").view(np.uint8)
    with pytest.raises(pytorch_file.PyTorchFileError, match="claims more numbers than there are"):
        pytorch_file._array(tensor, data, "<")
