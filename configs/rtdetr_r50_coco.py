"""RT-DETRv2 on ResNet-50-D for MS COCO, the published 6x recipe.

Paper row: none (RT-DETR is of 2023).
Expected: 53.4 AP (the RT-DETRv2 paper, with varifocal loss). Not run here: it needs a GPU.
Cost: 528,000 steps of 16 images, 72 epochs; sides of 480 to 800 pixels, a program for each.

    python train.py configs/rtdetr_r50_coco.py --data.root DIR
    python train.py configs/rtdetr_r50_coco.py --data.root DIR --loss.hardet
"""

import dataclasses

from harmonic_jax.config import Config, ResNetConfig, RTDETRConfig, TrainConfig
from harmonic_jax.recipes import COCO, DETR_ADAMW, DETR_LOSS, for_ssd


def config() -> Config:
    # 640 is drawn three times as often as others, and is evaluation's.
    sides = (480, 512, 544, 576, 608, 672, 704, 736, 768, 800, 640, 640, 640)
    return Config(
        name="rtdetr_r50_coco",
        data=dataclasses.replace(for_ssd(COCO, 640), short_sides=sides, max_side=800),
        model=RTDETRConfig(
            backbone=ResNetConfig(depth=50, variant="d", frozen_stages=1, weights="imagenet"),
            expansion=1.0,
            decoder_layers=6,
        ),
        loss=DETR_LOSS,
        optim=DETR_ADAMW,
        train=TrainConfig(steps=528_000, batch_size=16, precision="bfloat16", eval_every=20_000),
    )
