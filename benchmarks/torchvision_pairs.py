"""A detector of torchvision's and ours with the same random weights, and a batch for both."""

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np
import torch
import torchvision
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.detector_cases import NAMES, Case, make_case, random_batch
from harmonic_jax.pretrained import load_detector
from harmonic_jax.structures import Batch
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Detector, Variables, build_detector, init_variables

__all__ = ["NAMES", "Pair", "make_pair", "make_peer", "peer_inputs"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both sides of a comparison. `peer` takes `peer_images` and `peer_targets`."""

    peer: torch.nn.Module
    detector: Detector
    variables: Variables
    batch: Batch
    peer_images: list[torch.Tensor]
    peer_targets: list[dict[str, torch.Tensor]]
    first_label: int  # torchvision's number of our class 0


def make_pair(name: str, *, batch_size: int, size: int, hardet: bool = False) -> Pair:
    """torchvision's detector of this name with every part trained, and ours.

    Batch norms of the backbone are constants on both sides. The class outputs are spread as
    those of a trained network, so that selection and suppression have as much to do.
    """
    case = make_case(name, batch_size=batch_size, size=(size, size), hardet=hardet)
    batch = random_batch(batch_size, case.size, case.num_classes)
    images, targets = peer_inputs(case, batch)
    peer = make_peer(name, case.size, images)

    detector = build_detector(case.config, case.num_classes)
    everywhere = replicated(data_mesh())
    variables = init_variables(detector, seed=0, sharding=everywhere)
    state_dict = {key: tensor.numpy() for key, tensor in peer.state_dict().items()}
    loaded = load_detector(
        variables.params, variables.model_state, state_dict, case.config.model, case.num_classes
    )
    variables = jax.device_put(Variables(*loaded), everywhere)
    return Pair(peer, detector, variables, batch, images, targets, case.first_label)


def peer_inputs(
    case: Case, batch: Batch
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The same images and objects as torchvision wants them."""
    images = [torch.tensor(image).permute(2, 0, 1) / 255 for image in np.asarray(batch.images)]
    return images, _targets(batch, case.first_label)


def _targets(batch: Batch, first_label: int) -> list[dict[str, torch.Tensor]]:
    size = batch.images.shape[1:3]
    targets = []
    for boxes, labels in zip(
        np.asarray(batch.ground_truth.boxes), np.asarray(batch.ground_truth.labels), strict=True
    ):
        masks = np.zeros((len(boxes), *size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append(
            {
                "boxes": torch.tensor(boxes),
                "labels": torch.tensor(labels).long() + first_label,
                "masks": torch.tensor(masks),
            }
        )
    return targets


def make_peer(name: str, size: tuple[int, int], images: list[torch.Tensor]) -> torch.nn.Module:
    """torchvision's detector with random weights that are spread as those of a trained one."""
    torch.manual_seed(0)
    options = {} if name == "ssd300_vgg16" else {"min_size": min(size), "max_size": max(size)}
    build = getattr(torchvision.models.detection, name)
    with warnings.catch_warnings():  # It says that without weights every layer is trained.
        warnings.simplefilter("ignore")
        peer = build(weights=None, weights_backbone=None, **options)
    _freeze_norms(peer)
    peer.eval()
    for layer, mean, spread in _outputs(name, peer):
        _rescale(peer, layer, images, mean=mean, spread=spread)
    return peer


def _freeze_norms(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features)
            frozen.running_var.fill_(2.0)  # Random weights let activations grow; this holds them.
            setattr(module, name, frozen)
        else:
            _freeze_norms(child)


def _outputs(name: str, peer: Any) -> list[tuple[torch.nn.Module, float, float]]:
    """The last layers, in the order in which they depend on each other: mean and spread."""
    match name:
        case "retinanet_resnet50_fpn":
            head = peer.head
            return [
                (head.classification_head.cls_logits, -7.0, 1.1),
                (head.regression_head.bbox_reg, 0.0, 0.2),
            ]
        case "ssd300_vgg16":
            head = peer.head
            return [(layer, 0.0, 1.5) for layer in head.classification_head.module_list] + [
                (layer, 0.0, 0.5) for layer in head.regression_head.module_list
            ]
        case _:
            heads = peer.roi_heads
            return [
                (peer.rpn.head.cls_logits, 0.0, 2.0),
                (peer.rpn.head.bbox_pred, 0.0, 0.3),
                (heads.box_predictor.cls_score, 0.0, 1.5),
                (heads.box_predictor.bbox_pred, 0.0, 1.0),
            ]


@torch.no_grad()
def _rescale(
    peer: torch.nn.Module, layer: Any, images: list[torch.Tensor], *, mean: float, spread: float
) -> None:
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: seen.append(output.flatten()))
    peer([image.clone() for image in images])
    hook.remove()
    values = torch.cat(seen)
    scale = spread / values.std()
    layer.weight *= scale
    layer.bias.copy_(scale * (layer.bias - values.mean()) + mean)
