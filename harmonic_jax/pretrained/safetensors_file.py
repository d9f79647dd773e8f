"""Files in safetensors' format: checked before anything is allocated."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.json_file import parse_json
from harmonic_jax.pretrained.errors import WeightsError

MOST_HEADER_BYTES = 2**24  # a detector's has a hundredth of that; the format allows 100 MB
# What an array here can hold; the types of 8 and fewer bits a float has none.
_TYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64")


def header_length(start: bytes) -> int | None:
    """The length of the header of a file that starts so; None: it is no safetensors file.

    Args:
        start: its first 9 bytes or more.
    """
    if len(start) < 9 or start[8:9] != b"{":
        return None
    length = int(struct.unpack("<Q", start[:8])[0])
    return length if length <= MOST_HEADER_BYTES else None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a file says about itself.

    Raises:
        WeightsError: the file is damaged; the message says where.
    """
    return _read_header(path)[1]


def read_names(path: Path) -> list[str]:
    """The names of a file's arrays.

    Raises:
        WeightsError: the file is damaged.
    """
    return list(_read_header(path)[0])


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by name.

    Raises:
        WeightsError: the file is damaged, or holds numbers of a type that NumPy has not; the
            message names the tensor.
    """
    import safetensors

    tensors, _ = _read_header(path)
    for name, about in tensors.items():
        if about["dtype"] not in _TYPES:
            raise WeightsError(
                f"weights file {path}: {name} is {about['dtype']}, which is not read here; legal "
                f"are {', '.join(_TYPES)}. Save it as float32"
            )
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays: dict[str, np.ndarray] = file.get_tensors()
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise WeightsError(f"weights file {path} is damaged: {error}") from error
    return arrays


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What each tensor is, and the metadata; the bytes of all tensors are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(9))
        if length is None:
            raise WeightsError(f"weights file {path} is no safetensors file")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise WeightsError(f"weights file {path} is cut: {size} bytes do not hold its header")
    try:
        tensors = parse_json(text, "its header", unique_keys=True)
        metadata = tensors.pop("__metadata__", None) or {}
        end = 8 + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
        is_told = _is_of_text(metadata) and all(
            isinstance(about["dtype"], str) for about in tensors.values()
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(f"weights file {path} has a damaged header: {error}") from error
    if not is_told:
        raise WeightsError(f"weights file {path} has a damaged header: what is no text in it")
    if size < end:
        raise WeightsError(f"weights file {path} is cut: it has {size} of {end} bytes")
    return tensors, metadata


def _is_of_text(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
