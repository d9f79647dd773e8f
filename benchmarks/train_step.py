"""One training step of RetinaNet-R50-FPN against torchvision: same weights, images and objects.

    python -m benchmarks.train_step [--size 128] [--batch 4]

Forward, matching, loss, backward and the SGD update; frozen batch norms and everything else trained
on both sides. Before the timing the raw outputs are compared (same weights), and the loss of each
image; torchvision rounds its anchors to whole pixels, so the losses agree only nearly. The step
with HarDet is timed against torchvision's plain one as well: what the loss costs shows there.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors.torch
import torch
from torchvision.models.detection import RetinaNet as TorchRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.side_by_side import compare
from harmonic_jax.cli.train import use_both_cores
from harmonic_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimConfig,
    RetinaNetConfig,
    TrainConfig,
)
from harmonic_jax.pretrained import load_detector
from harmonic_jax.structures import Batch, GroundTruth
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import Variables, build_detector, init_state, init_variables
from harmonic_jax.training.step import make_train_step

NUM_CLASSES, OBJECTS = 80, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    use_both_cores()
    batch = _random_batch(args.batch, args.size)
    model = _torch_model(args.size)
    peer = _torch_step(model, batch)
    print(f"{args.batch} images of {args.size} x {args.size}, {jax.devices()[0].platform}")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "retinanet.safetensors"
        safetensors.torch.save_file(model.state_dict(), weights)
        agree = _agreement(model, batch, weights, args.size)
        for name, hardet in (("baseline", False), ("with HarDet", True)):
            ours = _our_step(batch, weights, args.size, hardet=hardet)
            compare(name, ours, peer, repeats=args.repeats, agree=agree)


def _config(size: int, batch: int, *, hardet: bool) -> Config:
    return Config(
        name="benchmark",
        data=DataConfig(short_sides=(size,), max_side=size, max_objects=OBJECTS),
        model=RetinaNetConfig(backbone=BackboneConfig(depth=50), extra_levels_from="p5"),
        loss=LossConfig(hardet=hardet, smooth_l1_beta=0.0),
        optim=OptimConfig(learning_rate=1e-6, warmup_steps=0, schedule="constant"),
        train=TrainConfig(batch_size=batch),
    )


def _random_batch(size: int, side: int) -> Batch:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.5 * side, (size, OBJECTS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(24, 0.5 * side, corner.shape)], -1)
    fields = GroundTruth(
        boxes.astype(np.float32),
        rng.integers(0, NUM_CLASSES, (size, OBJECTS)).astype(np.int32),
        np.ones((size, OBJECTS), bool),
    )
    return Batch(
        images=rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8),
        image_size=np.full((size, 2), side, np.float32),
        scale=np.ones((size, 2), np.float32),
        record_index=np.arange(size, dtype=np.int32),
        is_real=np.ones(size, bool),
        ground_truth=fields,
    )


def _torch_model(size: int) -> TorchRetinaNet:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    sizes = tuple(tuple(x * 2 ** (i / 3) for i in range(3)) for x in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    model = TorchRetinaNet(
        backbone, NUM_CLASSES, min_size=size, max_size=size, anchor_generator=anchors
    )
    # Random weights let activations grow from block to block; these keep them near one.
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(2.0)
    return model.train()


def _torch_inputs(batch: Batch) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images = [torch.tensor(image).permute(2, 0, 1) / 255 for image in np.asarray(batch.images)]
    truth = batch.ground_truth
    pairs = zip(np.asarray(truth.boxes), np.asarray(truth.labels), strict=True)
    return images, [{"boxes": torch.tensor(b), "labels": torch.tensor(k).long()} for b, k in pairs]


def _torch_step(model: TorchRetinaNet, batch: Batch) -> Callable[[], torch.Tensor]:
    images, targets = _torch_inputs(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _variables(weights: Path, config: Config) -> tuple[Variables, object]:
    mesh = data_mesh()
    detector = build_detector(config, NUM_CLASSES)
    variables = init_variables(detector, seed=0, sharding=replicated(mesh))
    params, rest = load_detector(
        variables.params, variables.rest, weights, config.model, NUM_CLASSES
    )
    return jax.device_put(Variables(params, rest), replicated(mesh)), detector


def _our_step(
    batch: Batch, weights: Path, size: int, *, hardet: bool
) -> Callable[[], dict[str, jax.Array]]:
    config = _config(size, len(batch.images), hardet=hardet)
    mesh = data_mesh()
    variables, detector = _variables(weights, config)
    optimizer = make_optimizer(config.optim, steps=config.train.steps)
    step = make_train_step(detector, optimizer, mesh)
    current = [init_state(variables, optimizer, ema=False, sharding=replicated(mesh))]
    on_device = put_batch(batch, mesh)

    def run() -> dict[str, jax.Array]:
        current[0], metrics = step(current[0], on_device)
        return metrics

    return run


def _agreement(model: TorchRetinaNet, batch: Batch, weights: Path, size: int) -> str:
    images, targets = _torch_inputs(batch)
    config = _config(size, 1, hardet=False)
    variables, detector = _variables(weights, config)
    ours = jax.jit(lambda v, b: detector.merge(v, train=True)(b.images, b.image_size))(
        variables, batch
    )
    with torch.no_grad():
        normalized, _ = model.transform([image.clone() for image in images], None)
        features = list(model.backbone(normalized.tensors).values())
        theirs = model.head(features)["cls_logits"].numpy()
        losses = [
            float(sum(model([i], [t]).values())) for i, t in zip(images, targets, strict=True)
        ]
    logits = np.concatenate([np.asarray(level) for level in ours.cls_logits], axis=1)
    error = np.abs(logits - theirs).max() / np.abs(theirs).max()
    mine = []
    for row in range(len(images)):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        mine.append(float(_our_step(one, weights, size, hardet=False)()["loss"]))
    gap = max(abs(a / b - 1) for a, b in zip(mine, losses, strict=True))
    if error > 1e-4 or gap > 0.1:
        raise SystemExit(f"no agreement: logits {error:.1e}, losses {mine} against {losses}")
    return f"logits agree to {error:.0e}, losses to {gap:.1%}"


if __name__ == "__main__":
    main()
