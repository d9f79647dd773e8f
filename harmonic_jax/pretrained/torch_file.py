"""PyTorch's files: read by PyTorch, and only what is no program."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.pretrained.errors import WeightsError

# Under which of these names training scripts save the weights; the average comes last.
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("weights", "params", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"),
)
_DEEPEST = 3
_FOREIGN_CLASS = re.compile(r"GLOBAL ((?:\w+\.)+\w+)|[Uu]nsupported class ((?:\w+\.)+\w+)")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The state dict of a file, by `weights_only`: nothing but tensors and plain containers.

    What a training script saved around it (`{"model": .., "epoch": ..}`) is left aside; of a model
    and its moving average the model is taken.

    Raises:
        WeightsError: PyTorch is missing, or the file is damaged, a program, or no state dict.
    """
    _check_archive(path)
    try:
        import torch
    except (ImportError, OSError) as error:
        raise WeightsError(
            f"weights file {path} needs PyTorch to be read: pip install torch, or convert the "
            "file to .safetensors where PyTorch is"
        ) from error
    found = _state_dict(_load(path), torch.Tensor)
    if isinstance(found, str):
        raise WeightsError(f"weights file {path} holds no state dict: {found}")
    return {name: _as_array(path, name, tensor) for name, tensor in found.items()}


def _check_archive(path: Path) -> None:
    """Whether the zip that PyTorch writes is whole, and claims no more than it has."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # a bare pickle, as before PyTorch 1.6
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"weights file {path} is cut or damaged: the end of PyTorch's archive is missing. "
            "Download or copy it again"
        ) from error
    names = [member.filename.partition("/")[2] for member in members]
    if "data.pkl" not in names:
        what = "NumPy's (.npz)" if any(m.filename.endswith(".npy") for m in members) else "another"
        raise WeightsError(f"weights file {path} is a zip archive, but {what}, not PyTorch's")
    if "constants.pkl" in names:
        raise WeightsError(
            f"weights file {path} is a TorchScript program, not a state dict. Save "
            "model.state_dict() instead, best as .safetensors"
        )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"weights file {path} is damaged: it claims more bytes than it has")


def _load(path: Path) -> Any:
    import torch

    # What torchvision's own training script saves beside the weights: no more than attributes.
    harmless = torch.serialization.safe_globals([argparse.Namespace])
    try:
        # An open file: of a path PyTorch looks at the suffix.
        with warnings.catch_warnings(), harmless, path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle, zip and torch errors of a damaged or hostile file
        raise WeightsError(f"weights file {path} was refused: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Without PyTorch's own advice, which is to read the file in a way that runs what is in it."""
    text = str(error)
    foreign = _FOREIGN_CLASS.search(text)
    if foreign is not None:
        return (
            f"it holds {foreign[1] or foreign[2]}, which is no tensor, and to read it would run "
            "code. Ask for a file of model.state_dict() alone, best as .safetensors"
        )
    if "weights_only" in text or not isinstance(error, RuntimeError):
        return "it is cut or damaged, or no file of PyTorch's"
    return f"it is cut or damaged ({text.splitlines()[0][:200]})"


def _state_dict(content: Any, tensor: type) -> dict[str, Any] | str:
    """The tensors by name, or what is there in place of them."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            return f"it is a {type(content).__name__}"
        is_flat = all(isinstance(k, str) and isinstance(v, tensor) for k, v in content.items())
        if content and is_flat:
            return dict(content)
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    shown = ", ".join(repr(key) for key in list(content)[:5]) if content else "nothing"
    return f"it is a dict of {shown}, and none of {', '.join(WRAPPERS)} is a dict of tensors"


def _as_array(path: Path, name: str, tensor: Any) -> np.ndarray:
    import torch

    try:
        if tensor.nbytes > path.stat().st_size:  # one number, said to be many
            raise WeightsError(f"weights file {path} is damaged: {name} claims more than it has")
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # which NumPy has of JAX, PyTorch does not know that
            return np.asarray(tensor.view(torch.int16).numpy()).view(np.dtype("bfloat16"))
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError) as error:  # sparse, quantised, of fewer than 8 bits
        raise WeightsError(
            f"weights file {path}: {name} is no plain array ({tensor.dtype}, {tensor.layout}). "
            "Save it as float32"
        ) from error
