"""Whole detectors in torchvision's state dict, both ways."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from harmonic_jax.config import FasterRCNNConfig, ModelConfig, RetinaNetConfig, SSDConfig
from harmonic_jax.pretrained.errors import WeightsError
from harmonic_jax.pretrained.files import read_state_dict
from harmonic_jax.pretrained.layout import Layout, fit_state
from harmonic_jax.pretrained.retinanet import retinanet_layout
from harmonic_jax.pretrained.ssd import ssd_layout
from harmonic_jax.pretrained.two_stage import two_stage_layout


def detector_layout(config: ModelConfig, num_classes: int) -> Layout:
    """How torchvision writes a detector.

    Args:
        config: the detector.
        num_classes: without background.

    Raises:
        WeightsError: torchvision has no such detector.
    """
    match config:
        case RetinaNetConfig():
            return retinanet_layout()
        case SSDConfig():
            return ssd_layout(num_classes)
        case FasterRCNNConfig():  # Mask R-CNN too
            return two_stage_layout(config, num_classes)
    raise WeightsError(f"torchvision has no layout for the weights of {type(config).__name__}")


def load_detector(
    params: nnx.State,
    model_state: nnx.State,
    weights: str | Path | Mapping[str, np.ndarray],
    config: ModelConfig,
    num_classes: int,
) -> tuple[nnx.State, nnx.State]:
    """Initialise a whole detector from a state dict of torchvision's.

    Args:
        params: trained part of the detector's state (`nnx.split(model, nnx.Param, ...)`).
        model_state: the other part.
        weights: the state dict or its file, float32: .safetensors, or .pth (needs PyTorch to be
            installed; read with `weights_only=True`).
        config: the detector; `pretrained.models` has those of torchvision's published weights.
        num_classes: without background; torchvision's RetinaNet has none among its outputs.

    Returns:
        New `params` and `model_state`, of the same structure.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the weights cannot be read or do not fit; the message names the tensors.
    """
    if isinstance(weights, Mapping):
        layout = detector_layout(config, num_classes)
        _check_classes(weights, layout, config, num_classes)
        return fit_state(params, model_state, weights, layout)
    state_dict = read_state_dict(weights)
    try:
        return load_detector(params, model_state, state_dict, config, num_classes)
    except WeightsError as error:
        raise WeightsError(f"weights file {weights}: {error}") from error


def _check_classes(
    state_dict: Mapping[str, np.ndarray], layout: Layout, config: ModelConfig, num_classes: int
) -> None:
    """Whether the head is of so many classes: of a detector that fits otherwise, one line in place
    of many shapes."""
    match config:
        case RetinaNetConfig():
            name, rows = "head.classification_head.cls_logits.bias", config.anchors.per_location
        case SSDConfig():
            name = "head.classification_head.module_list.0.bias"
            rows = config.default_boxes.per_location[0]
        case _:
            name, rows = "roi_heads.box_predictor.cls_score.bias", 1
    bias = {layout.renamed(n): array for n, array in state_dict.items()}.get(name)
    if bias is None or bias.size % rows:
        return
    background = 0 if isinstance(config, RetinaNetConfig) else 1
    found = bias.size // rows - background
    if found != num_classes:
        raise WeightsError(
            f"its head has {found} classes{', background aside' if background else ''}, and "
            f"{num_classes} have a name; --class-names FILE names them, in the order of its labels"
        )
