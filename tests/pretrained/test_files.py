"""Reading weights: what is refused, and that nothing in a file is run."""

import builtins
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from harmonic_jax.pretrained import WeightsError, read_state_dict

STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": np.array(7),
}


def assert_is_state(state_dict: dict[str, np.ndarray]) -> None:
    assert state_dict.keys() == STATE.keys()
    for name, array in STATE.items():
        np.testing.assert_array_equal(state_dict[name], array)
        assert state_dict[name].dtype == array.dtype


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(STATE, path)
    assert_is_state(read_state_dict(path))
    truncate(path)
    with pytest.raises(WeightsError, match=r"weights\.safetensors is no safetensors file"):
        read_state_dict(path)


def test_a_picture_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(WeightsError, match="no safetensors file"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_pth(tmp_path: Path, suffix: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch reads .pth files")
    path = tmp_path / f"weights{suffix}"
    torch.save({name: torch.from_numpy(array) for name, array in STATE.items()}, path)
    assert_is_state(read_state_dict(path))
    truncate(path)
    with pytest.raises(WeightsError, match=r"weights\.pth? was refused"):
        read_state_dict(path)


class MakesFolder:
    """Unpickling this runs os.mkdir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch reads .pth files")
    path, folder = tmp_path / "evil.pth", tmp_path / "made"
    torch.save({"weight": MakesFolder(folder)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth was refused by torch\.load") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(MakesFolder(folder)))  # without PyTorch's zip around it
    with pytest.raises(WeightsError, match="refused"):
        read_state_dict(path)
    assert not folder.exists()
    pickle.loads(path.read_bytes())  # the file is what it claims to be
    assert folder.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {"weight": 1}}, {"epoch": 3}])
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch reads .pth files")
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="no flat dict of tensors"):
        read_state_dict(path)


def test_pth_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    plain_import = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "torch":
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(WeightsError, match="install torch, or convert"):
        read_state_dict(path)


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        read_state_dict(tmp_path / "nothing.pth")
    path = tmp_path / "weights.npz"
    path.touch()
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, \.pth or \.pt"):
        read_state_dict(path)
