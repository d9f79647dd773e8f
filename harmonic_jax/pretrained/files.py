"""State dicts from files, whatever they are called, without running anything that is in them."""

import contextlib
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax import file_kinds
from harmonic_jax.files import write_bytes
from harmonic_jax.json_file import parse_json
from harmonic_jax.pretrained.pytorch_file import PyTorchFileError, read_pytorch_file

# What wrappers of a model put in front of all its names, and a counter that one of them adds.
PREFIXES = ("module.", "model.", "_orig_mod.", "ema_model.")
_COUNTER = "n_averaged"
# Under which of these names training scripts save the weights; the average comes last.
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"),
)
_DEEPEST = 3
_MOST_LETTERS = 2000
_MOST_HEADER_BYTES = 2**24  # a detector's has a hundredth of that; the format allows 100 MB
_TEXT = re.compile(rb"[\t\n\r -~]+")


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit the model.

    Its message is a line, whatever the names in a file hold.
    """

    def __init__(self, message: str) -> None:
        line = message.replace("\n", "\\n")
        super().__init__(line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]} ..")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict: tensor name -> array, in the file's layouts and dtypes.

    What a file is, is told from its bytes. `.safetensors` is read as it is. PyTorch's pickles
    (`.pth`, `.pt`, `.bin`, ..) may hold tensors and plain containers (`read_pytorch_file`). A state
    dict that a training script wrapped (`WRAPPERS`), or whose names all have a prefix
    (`PREFIXES`), is taken out of that.

    Raises:
        WeightsError: a file that is truncated, unsafe, or no state dict.
    """
    path = Path(path)
    if kind_of(path) == "safetensors":
        return _without_prefix(read_tensors(path))
    return _without_prefix(_read_torch(path))


def kind_of(path: Path) -> str:
    """`safetensors` or `torch`, as the first bytes of a file say.

    A `WeightsError` says what any other file is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"weights file {path} does not exist") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise WeightsError(f"weights file {path} is {what}; it must be a file")
    with path.open("rb") as file:
        start = file.read(file_kinds.START_BYTES)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MOST_HEADER_BYTES:
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


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file says about itself."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, by name.

    Raises:
        WeightsError: the file is damaged, or holds numbers of a type that NumPy has not.
    """
    with _opened(path) as file:
        arrays: dict[str, np.ndarray] = file.get_tensors()
    return arrays


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:
            with path.open("rb") as raw:  # of a name that is there twice the library takes one
                header = raw.read(struct.unpack("<Q", raw.read(8))[0])
            parse_json(header, "its header", unique_keys=True)
            yield file
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"weights file {path} is cut or damaged, or not of plain numbers: {error}"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """A PyTorch file's state dict.

    What a training script saved around it (`{"model": .., "epoch": ..}`) is left aside; of a model
    and its moving average the model is taken.
    """
    try:
        found = _state_dict(read_pytorch_file(path))
    except PyTorchFileError as error:
        raise WeightsError(f"weights file {path} was refused: {error}") from error
    if isinstance(found, str):
        raise WeightsError(f"weights file {path} holds no state dict: {found}")
    return found


def _state_dict(content: Any) -> dict[str, np.ndarray] | str:
    """The arrays by name, or what is there in place of them."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            kind = "tensor" if isinstance(content, np.ndarray) else type(content).__name__
            return f"it is a {kind}"
        is_flat = all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in content.items())
        if content and is_flat:
            return dict(content)
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    shown = ", ".join(repr(key) for key in list(content)[:5]) if content else "nothing"
    return f"it is a dict of {shown}, and none of {', '.join(WRAPPERS)} is a dict of tensors"


def write_state_dict(
    path: str | Path,
    state_dict: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict as .safetensors, whole or not at all.

    Raises:
        WeightsError: the name has another suffix.
        FileExistsError: the file exists; nothing is overwritten.
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
