"""Weights of torchvision's models <-> the state of ours, every array checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import jax
import numpy as np
from flax import nnx

from harmonic_jax.config import EfficientNetLiteConfig, ModelConfig, ResNetConfig, VGGConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import layout as layouts
from harmonic_jax.pretrained.files import WeightsError, read_state_dict
from harmonic_jax.pretrained.layout import Layout
from harmonic_jax.pretrained.torchvision import backbone_layout, detector_layout

# A counter of PyTorch's batch norms that nothing reads.
COUNTER = ".num_batches_tracked"
_SHOWN = 3  # in an error message, of each kind of fault
StoredAs = Literal["float32", "float16"]
_HALVES = (np.dtype("float16"), np.dtype("bfloat16"))


def load_detector(
    params: nnx.State,
    model_state: nnx.State,
    weights: str | Path | Mapping[str, np.ndarray],
    config: ModelConfig,
    num_classes: int,
) -> tuple[nnx.State, nnx.State]:
    """Initialise a whole detector from a state dict of torchvision's; returns new states.

    Args:
        params: trained part of the detector's state (`nnx.split(model, nnx.Param, ...)`).
        weights: the state dict or its file, float32: .safetensors, or PyTorch's .pth.
        config: `pretrained.models` has those of torchvision's published weights.
        num_classes: without background; torchvision's RetinaNet has none among its outputs.

    Raises:
        WeightsError: the weights cannot be read or do not fit; the message names the tensors.
    """
    layout = detector_layout(config, num_classes)
    if isinstance(weights, Mapping):
        return fit_state(params, model_state, weights, layout)
    try:
        return fit_state(params, model_state, read_state_dict(weights), layout)
    except WeightsError as error:
        raise WeightsError(f"weights file {weights}: {error}") from error


def load_backbone(
    params: nnx.State, model_state: nnx.State, path: str | Path, config: ModelConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from a classifier of torchvision's; returns new states.

    A ResNet's `fc` is ignored; of VGG-16, see `torchvision.backbone_layout`. Every other tensor
    must be there, with the shape of the configured depth, width and groups, and nothing may be
    left over; otherwise a `WeightsError` names the tensors.
    """
    state_dict, backbone = read_state_dict(path), config.backbone
    match backbone:
        case ResNetConfig():
            groups = f" and {backbone.groups} groups" if backbone.groups > 1 else ""
            what = f"ResNet-{backbone.depth} of width {backbone.width}{groups}"
        case EfficientNetLiteConfig():
            what = f"EfficientNet-Lite{backbone.variant}"
        case VGGConfig():
            what = f"VGG-16 of width {backbone.width}"
            if backbone.norm != "none":
                raise WeightsError(
                    f"weights file {path} is for backbone.norm = none; backbone.norm is "
                    f"{backbone.norm!r}"
                )
    try:
        return fit_state(params, model_state, state_dict, backbone_layout(backbone, state_dict))
    except WeightsError as error:
        raise WeightsError(f"weights file {path} for {what}: {error}") from error


def check_classifier(path: str | Path, config: ModelConfig) -> None:
    """Whether a classifier's file fits the backbone of a detector; see `load_backbone`."""
    model = nnx.eval_shape(lambda: build_model(config, 1, rngs=nnx.Rngs(0)))
    params, model_state = nnx.state(model, nnx.Param, ...)
    load_backbone(params, model_state, path, config)


def fit_state(
    params: nnx.State, model_state: nnx.State, state_dict: Mapping[str, np.ndarray], layout: Layout
) -> tuple[nnx.State, nnx.State]:
    """Replace arrays of a model's state by those of a PyTorch state dict.

    float16 and bfloat16 become float32, which has all their numbers.

    Returns:
        New `params` and `model_state`, on the devices and with the sharding of the old.

    Raises:
        WeightsError: names that are missing, left over, or of another shape or dtype; numbers
            that are NaN or infinite; a model that PyTorch's has no place for.
    """
    todays = _todays_names(state_dict, layout)
    wanted: list[str] = []
    unfit: list[str] = []

    def replace(path: layouts.Path, variable: nnx.Variable) -> nnx.Variable:
        old = variable.get_value()
        entry = layout.entry(path, old.ndim)
        if entry is None:
            return variable
        name, transform = entry
        wanted.append(name)
        if name not in todays:
            return variable
        array, shape = widened(todays[name]), transform.torch_shape(old.shape)
        if array.shape != shape or array.dtype != old.dtype:
            there, here = f"{array.dtype}{list(array.shape)}", f"{old.dtype}{list(shape)}"
            fault = f"is {there}, the model needs {here}"
        else:
            fault = fault_of(array) or ""
        if fault:
            unfit.append(f"{name} {fault}")
            return variable
        ours = np.asarray(transform.to_ours(array), order="C")
        return variable.replace(jax.device_put(ours, old.sharding))

    fitted = nnx.map_state(replace, params), nnx.map_state(replace, model_state)
    surplus = [
        name
        for name in todays.keys() - set(wanted)
        if not name.startswith((*layout.ignored, *layout.constants)) and not name.endswith(COUNTER)
    ]
    missing = [name for name in wanted if name not in todays]
    faults = (
        [f"{name} is missing" for name in missing],
        [f"{name} is not part of the model" for name in sorted(surplus)],
        unfit,
    )
    if any(faults):
        shown = [line for lines in faults for line in lines[:_SHOWN]]
        num_more = sum(map(len, faults)) - len(shown)
        more = f" and {num_more} more" if num_more else ""
        raise WeightsError(f"the weights do not fit the model: {'; '.join(shown)}{more}")
    return fitted


def export_state(
    params: nnx.State,
    model_state: nnx.State,
    layout: Layout,
    *,
    originals: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The inverse of `fit_state`: PyTorch's names and layouts of every array that has a name.

    Args:
        originals: what `remainder` kept of the file that was read, under today's names. One that
            our model has no array for is written as it is; one that an array holds in part is
            written where the array has not changed since.

    Returns:
        name -> contiguous array. With the originals: bit for bit what `fit_state` read.
    """
    originals = dict(originals or {})
    state_dict = dict(layout.constants)
    for part in (params, model_state):
        for path, variable in nnx.to_flat_state(part):
            array = np.asarray(variable.get_value())
            entry = layout.entry(cast(layouts.Path, path), array.ndim)
            if entry is None:
                continue
            name, transform = entry
            theirs = np.asarray(transform.to_torch(array), order="C")
            original = originals.pop(name, None)
            if (
                original is not None
                and original.shape == theirs.shape
                and _same_bits(transform.to_ours(widened(original)), array)
            ):
                theirs = original
            state_dict[name] = theirs
    return state_dict | originals


def remainder(
    params: nnx.State, model_state: nnx.State, state_dict: Mapping[str, np.ndarray], layout: Layout
) -> dict[str, np.ndarray]:
    """What the state that was read from a file cannot give back, under today's names.

    Counters of batch norms, ignored tensors, and whole tensors of which our model holds a part.
    """
    exported = export_state(params, model_state, layout)
    return {
        name: array
        for name, array in _todays_names(state_dict, layout).items()
        if name not in exported or not _same_bits(exported[name], array)
    }


def fault_of(array: np.ndarray) -> str | None:
    """Why an array is no weights; None: it may be.

    >>> fault_of(np.array([1.0, np.nan]))
    'holds NaN or inf (1 of 2 numbers)'
    """
    if not jax.dtypes.issubdtype(array.dtype, np.floating):
        return None
    finite = int(np.isfinite(array).sum())
    if finite < array.size:
        return f"holds NaN or inf ({array.size - finite} of {array.size} numbers)"
    return None


def _todays_names(state_dict: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    todays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        today = layout.renamed(name)
        if today in todays and not _same_bits(array, todays[today]):
            raise WeightsError(f"the weights hold {today} twice, under a newer and an older name")
        todays[today] = array
    return todays


def widened(array: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 as float32, which has all their numbers; others as they are."""
    return array.astype(np.float32) if array.dtype in _HALVES else array


def as_dtype(arrays: Mapping[str, np.ndarray], dtype: StoredAs) -> dict[str, np.ndarray]:
    """Arrays to store: those of float32 in a dtype, others as they are.

    A number beyond what float16 can say is a `WeightsError` that names the array.
    """
    stored = {}
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            stored[name] = array.astype(dtype) if array.dtype == np.float32 else array
        if fault_of(stored[name]) and not fault_of(array):
            largest = f"{np.abs(array).max():g}"
            raise WeightsError(f"{name} holds {largest}, beyond float16; write it as float32")
    return stored


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
