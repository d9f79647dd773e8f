"""Every detector, with HarDet, learns eight real photos by heart: nothing in its way is broken."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from harmonic_jax.cli.configs import load_config
from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DenoisingConfig,
    LossConfig,
    MaskRCNNConfig,
    OptimConfig,
    ResNetConfig,
    RTDETRConfig,
    TrainConfig,
)
from harmonic_jax.data.sources import open_source
from harmonic_jax.training.loop import train
from harmonic_jax.training.run_folder import RunFolder

CONFIGS = Path(__file__).parent.parent.parent / "configs"
NUM_IMAGES = 8
SMALLEST = 0.12  # sides of an object, as parts of the image's: what 160 pixels can show

NAMES = ("retinanet_r18", "ssd_vgg", "refinedet_vgg", "faster_rcnn_r18", "mask_rcnn_r18", "rtdetr")
RTDETR = RTDETRConfig(
    backbone=ResNetConfig(depth=18, width=32, variant="d", norm="batch"),
    channels=64,
    ffn=128,
    decoder_channels=64,
    decoder_ffn=128,
    decoder_layers=2,
    num_queries=50,
    denoising=DenoisingConfig(num_objects=20),
)


@pytest.fixture(scope="module")
def eight_photos(coco_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of the first images without crowds and without small objects."""
    folder = tmp_path_factory.mktemp("eight_photos")
    whole = json.loads((coco_tiny / "annotations" / "instances_train2017.json").read_text())
    objects: dict[int, list] = {image["id"]: [] for image in whole["images"]}
    for annotation in whole["annotations"]:
        objects[annotation["image_id"]].append(annotation)

    def is_clear(image: dict) -> bool:
        found = objects[image["id"]]
        return bool(found) and all(
            not a["iscrowd"]
            and a["bbox"][2] > SMALLEST * image["width"]
            and a["bbox"][3] > SMALLEST * image["height"]
            for a in found
        )

    images = [image for image in whole["images"] if is_clear(image)][:NUM_IMAGES]
    assert len(images) == NUM_IMAGES
    (folder / "train2017").mkdir()
    for image in images:
        shutil.copy(coco_tiny / "train2017" / image["file_name"], folder / "train2017")
    part = {
        "images": images,
        "annotations": [a for image in images for a in objects[image["id"]]],
        "categories": whole["categories"],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(part))
    return folder


def _config(name: str, folder: Path) -> Config:
    if name == "rtdetr":
        few = DataConfig(max_objects=8)
        base = Config(name, data=few, model=RTDETR, loss=LossConfig(cls_loss="varifocal"))
    else:
        base = load_config(CONFIGS / f"{name}_scenes.py")
    return dataclasses.replace(
        base,
        data=DataConfig(
            format="coco",
            root=str(folder),
            train_split="train2017",
            eval_split="train2017",
            short_sides=(160,),
            max_side=160,
            resize="warp",
            max_objects=8,
            masks=isinstance(base.model, MaskRCNNConfig),
            augment=AugmentConfig(flip=0.0),
        ),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.0,
            schedule="cosine",
            warmup_steps=20,
            clip_norm=10.0,
        ),
        train=TrainConfig(steps=400, batch_size=NUM_IMAGES, eval_every=0, checkpoint_every=10_000),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_overfits_eight_photos(name: str, eight_photos: Path, tmp_path: Path) -> None:
    config = _config(name, eight_photos)
    source = open_source(config.data, config.data.train_split)
    result = train(config, RunFolder(tmp_path / "run"), source, source)
    assert result.evaluation is not None
    metrics = result.evaluation.metrics
    assert metrics["AP"] >= 0.9, metrics
    if isinstance(config.model, MaskRCNNConfig):
        assert metrics["mask_AP"] >= 0.6, metrics
