"""Forward and gradient parity with torchvision on random weights, through files on disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.config import AnchorConfig, ResNetConfig, RetinaNetConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import load_detector

NUM_CLASSES = 3
EPS = 0.02
SHAPE = (128, 65)  # on every level one side is even and one is odd


@pytest.fixture(scope="module")
def torchvision() -> Any:
    try:
        import torchvision.models.detection
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


def randomize(model: Any) -> Any:
    """Weights under which no layer is idle and no output is its bias alone."""
    import torch

    torch.manual_seed(0)
    init = torch.nn.init
    for module in model.modules():
        if hasattr(module, "running_mean"):
            init.normal_(module.running_mean, 0.0, 0.1)
            init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, torch.nn.Conv2d):
            init.kaiming_normal_(module.weight)
        elif hasattr(module, "weight"):
            init.uniform_(module.weight, 0.3, 0.8)
        if getattr(module, "bias", None) is not None:
            init.normal_(module.bias, 0.0, 0.1)
    return model.eval()


def load(model: Any, config: RetinaNetConfig, folder: Path) -> tuple:
    """Our graphdef, parameters and the rest, read from a file of torchvision's model."""
    import torch

    path = folder / "weights.pth"
    torch.save(model.state_dict(), path)
    ours = nnx.eval_shape(lambda: build_model(config, NUM_CLASSES, rngs=nnx.Rngs(0)))
    graphdef, params, model_state = nnx.split(ours, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, model_state))
    return graphdef, *load_detector(*zeros, path, config, NUM_CLASSES)


def random_images(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)


def to_torch(images: np.ndarray) -> Any:
    import torch

    normalized = np.array(normalize_images(jnp.asarray(images)))
    return torch.from_numpy(normalized).permute(0, 3, 1, 2)


def backbone_features(body: Any, x: Any) -> list[Any]:
    x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
    features = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = body[name](x)
        features.append(x)
    return features


def relative_error(actual: jax.Array, expected: Any) -> float:
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def test_forward_parity(torchvision: Any, tmp_path: Path) -> None:
    """On ResNet-50; with group norms on ResNet-18: see tests/detectors."""
    import torch

    config = RetinaNetConfig(extra_levels_from="p5")
    build = torchvision.models.detection.retinanet_resnet50_fpn
    theirs = randomize(build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES))
    graphdef, params, model_state = load(theirs, config, tmp_path)

    @jax.jit
    def run(params: nnx.State, model_state: nnx.State, images: jax.Array) -> tuple:
        model = nnx.merge(graphdef, params, model_state)
        model.eval()
        return model.backbone(images), model(images)

    images = random_images(SHAPE)
    features, predictions = run(params, model_state, images)
    with torch.no_grad():
        x = to_torch(images)
        expected_features = backbone_features(theirs.backbone.body, x)
        expected = [theirs.head([level]) for level in theirs.backbone(x).values()]
    for actual, feature in zip(features, expected_features, strict=True):
        assert relative_error(actual, feature.permute(0, 2, 3, 1)) <= 1e-4
    for actual, level in zip(predictions.cls_logits, expected, strict=True):
        assert relative_error(actual, level["cls_logits"]) <= 1e-4
    for actual, level in zip(predictions.deltas, expected, strict=True):
        assert relative_error(actual, level["bbox_regression"]) <= 1e-4


def small_pair(torchvision: Any, folder: Path) -> tuple:
    """A ResNet-18 RetinaNet without head convolutions, and another epsilon: theirs and ours."""
    from torch import nn

    anchors = AnchorConfig(scales=(1.0,), ratios=(1.0,))
    config = RetinaNetConfig(
        ResNetConfig(18, norm="batch", norm_eps=EPS), channels=16, head_convs=0, anchors=anchors
    )
    detection = torchvision.models.detection
    resnet = torchvision.models.resnet18(weights=None)
    extra = torchvision.ops.feature_pyramid_network.LastLevelP6P7(512, 16)
    layers = {f"layer{i}": str(i) for i in (2, 3, 4)}
    backbone = detection.backbone_utils.BackboneWithFPN(
        resnet, layers, [128, 256, 512], 16, extra_blocks=extra
    )
    head = detection.retinanet.RetinaNetHead(16, 1, NUM_CLASSES)
    head.classification_head.conv = head.regression_head.conv = nn.Sequential()
    generator = detection.anchor_utils.AnchorGenerator(((32,),) * 5, ((1.0,),) * 5)
    theirs = randomize(detection.RetinaNet(backbone, NUM_CLASSES, generator, head=head))
    for module in theirs.modules():
        if hasattr(module, "running_var"):
            module.eps = EPS
    return theirs, config, load(theirs, config, folder)


def test_training_parity(torchvision: Any, tmp_path: Path) -> None:
    """Batch statistics, their running averages, and the gradient of every parameter."""
    import torch

    theirs, config, (graphdef, params, model_state) = small_pair(torchvision, tmp_path)
    images = random_images((96, 96))

    @jax.jit
    def run(params: nnx.State, model_state: nnx.State) -> tuple:
        def loss(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, model_state, copy=True)
            model.train()
            predictions = model(images)
            outputs = (*predictions.cls_logits, *predictions.deltas)
            return sum((x**2).sum() for x in outputs), nnx.state(model, nnx.Not(nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, new_state), grads = run(params, model_state)
    theirs.train()
    outputs = theirs.head(list(theirs.backbone(to_torch(images)).values()))
    expected_loss = sum((x**2).sum() for x in outputs.values())
    expected_loss.backward()
    np.testing.assert_allclose(loss, expected_loss.item(), rtol=1e-5)

    # The mapping of names, checked above, carries their gradients and statistics into our layout.
    state = theirs.state_dict() | {n: p.grad for n, p in theirs.named_parameters()}
    path = tmp_path / "after.pth"
    torch.save(state, path)
    expected_grads, expected_state = load_detector(grads, new_state, path, config, NUM_CLASSES)
    for actual, expected in ((grads, expected_grads), (new_state, expected_state)):
        for (name, ours), (_, reference) in zip(
            nnx.to_flat_state(actual), nnx.to_flat_state(expected), strict=True
        ):
            reference = np.asarray(reference[...])
            error = np.linalg.norm(ours[...] - reference) / np.linalg.norm(reference)
            # 1e-5 but for a ReLU whose input rounds to the other side of zero: one is 3e-3.
            assert error <= 1e-2, name
