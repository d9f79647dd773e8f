"""RetinaNet on a narrow ResNet-18 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: AP50 0.88, AP 0.55 on the test split (measured, one seed).
Cost: 48 minutes on 2 CPU cores that did other work as well.

    python train.py configs/retinanet_r18_bccd.py --data.root DIR
    python train.py configs/retinanet_r18_bccd.py --data.root DIR --loss.no-hardet   # baseline
"""

from harmonic_jax.config import AnchorConfig, Config, RetinaNetConfig
from harmonic_jax.recipes import BCCD, BCCD_HOUR, FROM_SCRATCH, SMALL_RESNET


def config() -> Config:
    return Config(
        name="retinanet_r18_bccd",
        data=BCCD,
        model=RetinaNetConfig(
            backbone=SMALL_RESNET,
            levels=(3, 5),
            channels=64,
            head_convs=2,
            head_norm="group",
            anchors=AnchorConfig(size_factor=3.0, scales=(1.0, 2**0.5)),
        ),
        optim=FROM_SCRATCH,
        train=BCCD_HOUR,
    )
