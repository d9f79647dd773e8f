"""Reading state dicts from files without running anything that is in them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


class WeightsError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a flat state dict: tensor name -> array.

    `.safetensors` is read as it is. `.pth` and `.pt`, PyTorch's pickles, are read only by PyTorch
    (which must be installed) with `weights_only=True`, which refuses any object but tensors and
    plain containers.

    Args:
        path: the file.

    Returns:
        Arrays in the file's names, layouts and dtypes.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: unknown suffix, PyTorch is missing, or a file that is truncated, unsafe
            or no flat dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".pth" | ".pt":
            return _read_torch(path)
    raise WeightsError(
        f"weights file {path} ends in {path.suffix!r}; it must end in .safetensors, .pth or .pt"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise WeightsError(f"weights file {path} is no safetensors file: {error}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"weights file {path} needs PyTorch to be read: "
            "install torch, or convert the file to .safetensors"
        ) from error
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors of a damaged or hostile file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"weights file {path} was refused by torch.load: {reason}") from error
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in state_dict.items()
    ):
        raise WeightsError(f"weights file {path} holds no flat dict of tensors")
    try:
        return {name: tensor.detach().numpy() for name, tensor in state_dict.items()}
    except TypeError as error:  # bfloat16 and its like
        raise WeightsError(f"weights file {path} holds no plain arrays: {error}") from error


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a state dict as .safetensors, whole or not at all.

    Raises:
        WeightsError: the name has another suffix.
        FileExistsError: the file exists; nothing is overwritten.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} ends in {path.suffix!r}; it must end in .safetensors")
    if path.exists():
        raise FileExistsError(f"{path} exists; nothing is overwritten")
    import safetensors.numpy

    partial = path.with_name(f".{path.name}.partial")
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    safetensors.numpy.save_file(arrays, partial, metadata={"format": "pt"})
    partial.replace(path)
