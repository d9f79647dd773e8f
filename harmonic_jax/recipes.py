"""What the files of `configs/` are put together from: data, optimizers, schedules by name.

A config states with `dataclasses.replace` where it differs. Schedules that several detectors share
stand here; what one detector alone has stands in its config.
"""

import dataclasses

from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EfficientNetLiteConfig,
    FasterRCNNConfig,
    LossConfig,
    MaskRCNNConfig,
    OptimConfig,
    ResNetConfig,
    RetinaNetConfig,
    TrainConfig,
    VGGConfig,
)

# --- Data: 800 x 1333 pixels, flipped at random, where not said otherwise ------------------------

COCO = DataConfig(name="coco/2017", num_threads=16)
# As it is downloaded: train2017/, val2017/ and annotations/.
COCO_FOLDER = DataConfig(
    format="coco",
    root="data/coco",
    train_split="train2017",
    eval_split="val2017",
    num_threads=16,
)
# TFDS's COCO has no masks.
COCO_MASKS = dataclasses.replace(COCO_FOLDER, masks=True)
VOC = DataConfig(name="voc/2007+2012", train_split="trainval", eval_split="test", num_threads=16)
# VOC 2007 alone, for a laptop: two images of VOC's in three are 500 x 375 pixels.
VOC_320 = DataConfig(
    format="voc",
    root="data/voc2007",
    train_split="trainval",
    eval_split="test",
    short_sides=(240,),
    max_side=320,
    max_objects=42,
    augment=AugmentConfig(photometric=True, expand=2.0, crop=True, flip=0.5),
)
# Scenes are 128 pixels wide; at 96 a step costs half and the items, drawn from 28 pixels, lose next
# to nothing.
SCENES = DataConfig(name="fashion_scenes", short_sides=(96,), max_side=96, max_objects=8)
# The photos of blood cells are 640 x 480: half of that. A microscope has no up: flips both ways are
# free data. The colours of the stain tell the classes apart: no photometric distortion, which
# permutes them.
BCCD = DataConfig(
    format="voc",
    root="data/bccd",
    train_split="trainval",
    eval_split="test",
    short_sides=(240,),
    max_side=320,
    max_objects=64,
    augment=AugmentConfig(flip=0.5, vertical_flip=0.5),
)


def for_ssd(data: DataConfig, side: int) -> DataConfig:
    """The images as SSD and RefineDet train on them: stretched to a square, strongly augmented."""
    return dataclasses.replace(
        data,
        resize="warp",
        short_sides=(side,),
        max_side=side,
        augment=AugmentConfig(photometric=True, expand=4.0, crop=True, flip=0.5),
    )


# --- Optimizers and schedules --------------------------------------------------------------------

COCO_1X = TrainConfig(steps=90_000, batch_size=16, precision="bfloat16")
SSD_SGD = OptimConfig(learning_rate=1e-3, weight_decay=5e-4, milestones=(2 / 3, 5 / 6))
SSD_VOC = TrainConfig(steps=120_000, batch_size=32, precision="bfloat16")
SSD_COCO = TrainConfig(steps=400_000, batch_size=32, precision="bfloat16", eval_every=20_000)

FROM_SCRATCH = OptimConfig(
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    schedule="cosine",
    warmup_steps=200,
    clip_norm=10.0,
    ema_decay=0.998,
)
FINE_TUNED = dataclasses.replace(FROM_SCRATCH, rate_factors=(("backbone", 0.3),))
VOC_HOURS = TrainConfig(steps=4700, batch_size=16, eval_every=1500, checkpoint_every=200)
SCENES_MINUTES = TrainConfig(steps=2000, batch_size=16, eval_every=1000, checkpoint_every=250)
BCCD_HOUR = TrainConfig(steps=2000, batch_size=8, eval_every=500, checkpoint_every=200)

# RT-DETRv2's, for 16 images a step.
DETR_ADAMW = OptimConfig(
    optimizer="adamw",
    learning_rate=1e-4,
    weight_decay=1e-4,
    schedule="constant",
    warmup_steps=2000,
    clip_norm=0.1,
    ema_decay=0.9999,
    rate_factors=(("backbone", 0.1),),
)

# --- Losses --------------------------------------------------------------------------------------

# SmoothL1's beta of 1/9, in both stages, is torchvision's.
TWO_STAGE_LOSS = LossConfig(smooth_l1_beta=1 / 9)
# Factors as weights: with them SSD trained better than through them (docs/results.md).
SSD_LOSS = LossConfig(smooth_l1_beta=1.0, factor_gradient="stop")
# What RT-DETR was published with; `--loss.hardet` joins them.
DETR_LOSS = LossConfig(hardet=False, cls_loss="varifocal")
REFINEDET_LOSS = LossConfig(smooth_l1_beta=1.0)

# --- Backbones, and the 1x recipes of COCO -------------------------------------------------------

# The stem and the first stage stay as ImageNet left them, as in the reference recipe.
RESNET50 = ResNetConfig(depth=50, norm="frozen", frozen_stages=2)
RESNET101 = dataclasses.replace(RESNET50, depth=101)
RESNEXT101_32X4D = dataclasses.replace(RESNET101, groups=32, width_per_group=4)
RESNEXT101_64X4D = dataclasses.replace(RESNET101, groups=64, width_per_group=4)
LITE0 = EfficientNetLiteConfig(norm="frozen", frozen_stages=2, weights="imagenet")
SMALL_RESNET = ResNetConfig(depth=18, width=32, norm="batch")
SMALL_VGG = VGGConfig(width=16, norm="batch")


def retinanet_1x(name: str, backbone: ResNetConfig) -> Config:
    """RetinaNet on COCO: SGD, 90,000 steps of 16 images, the rate divided at 2/3 and 8/9."""
    return Config(name=name, data=COCO, model=RetinaNetConfig(backbone=backbone), train=COCO_1X)


def faster_rcnn_1x(name: str, backbone: ResNetConfig) -> Config:
    """Faster R-CNN on COCO: as RetinaNet with twice the learning rate."""
    return Config(
        name=name,
        data=COCO,
        model=FasterRCNNConfig(backbone=backbone),
        loss=TWO_STAGE_LOSS,
        optim=OptimConfig(learning_rate=0.02),
        train=COCO_1X,
    )


def mask_rcnn_1x(name: str, backbone: ResNetConfig) -> Config:
    """Mask R-CNN on COCO: as Faster R-CNN, with masks."""
    faster = faster_rcnn_1x(name, backbone)
    return dataclasses.replace(faster, data=COCO_MASKS, model=MaskRCNNConfig(backbone=backbone))
