"""State dicts from files, whatever they are called, without running anything that is in them."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harmonic_jax import file_kinds
from harmonic_jax.files import write_bytes
from harmonic_jax.pretrained import safetensors_file, torch_file
from harmonic_jax.pretrained.errors import WeightsError

# What wrappers of a model put in front of all its names, and a counter that one of them adds.
PREFIXES = ("module.", "model.", "_orig_mod.", "ema_model.")
_COUNTER = "n_averaged"
_TEXT = re.compile(rb"[\t\n\r -~]+")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict: tensor name -> array.

    What a file is, is told from its bytes. `.safetensors` is read as it is. PyTorch's pickles
    (`.pth`, `.pt`, `.bin`, ..) are read only by PyTorch, which must be installed, with
    `weights_only=True`, which refuses any object but tensors and plain containers. A state dict
    that a training script wrapped (`torch_file.WRAPPERS`), or whose names all have a prefix
    (`PREFIXES`), is taken out of that.

    Args:
        path: the file.

    Returns:
        Arrays in the file's layouts and dtypes.

    Raises:
        OSError: there is no such file, or it may not be read.
        WeightsError: PyTorch is missing, or a file that is truncated, unsafe, or no state dict.
    """
    path = Path(path)
    if kind_of(path) == "safetensors":
        return _without_prefix(safetensors_file.read_tensors(path))
    return _without_prefix(torch_file.read_tensors(path))


def kind_of(path: Path) -> str:
    """`safetensors` or `torch`, as the first bytes of a file say.

    Raises:
        OSError: there is no such file, or it may not be read.
        WeightsError: it is neither; the message says what it is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"weights file {path} does not exist") from None
    except ValueError as error:  # a zero byte
        raise WeightsError(f"weights file {str(path)!r} is no path: {error}") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise WeightsError(f"weights file {path} is {what}; it must be a file")
    with path.open("rb") as file:
        start = file.read(file_kinds.START_BYTES)
    if safetensors_file.header_length(start) is not None:
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    legal = "legal are .safetensors and PyTorch's .pth"
    if not start:
        raise WeightsError(f"weights file {path} is empty; {legal}")
    kind = file_kinds.kind_of(start) or ("a text" if _TEXT.fullmatch(start) else None)
    raise WeightsError(
        f"weights file {path} is {kind or 'cut, damaged, or of another format'}; {legal}"
    )


def _without_prefix(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without what stands in front of all of them.

    >>> sorted(_without_prefix({"module.model.a": 1, "module.model.b": 2, "n_averaged": 3}))
    ['a', 'b']
    """
    names = state_dict.keys() - {_COUNTER}
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) and name != prefix for name in names):
            return _without_prefix({n.removeprefix(prefix): state_dict[n] for n in names})
    return state_dict


def write_state_dict(
    path: str | Path,
    state_dict: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict as .safetensors, whole or not at all.

    Args:
        path: the file.
        state_dict: the arrays by name.
        metadata: texts for the file's header.

    Raises:
        WeightsError: the name has another suffix.
        FileExistsError: the file exists; nothing is overwritten.
        OSError: it cannot be written.
    """
    path = Path(path)
    check_target(path)
    import safetensors.numpy

    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    write_bytes(path, safetensors.numpy.save(arrays, {"format": "pt"} | dict(metadata or {})))


def check_target(path: Path) -> None:
    """Whether a file may be written as .safetensors; see `write_state_dict`."""
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} ends in {path.suffix!r}; it must end in .safetensors")
    if path.exists():
        raise FileExistsError(f"{path} exists; nothing is overwritten")
