"""RetinaNet on a narrow ResNet-18 for the built-in fashion scenes, from scratch: the default.

Not a row of the paper: a run of minutes on a laptop's processor that goes the whole way.
Expected: AP50 0.53, AP 0.35 on the held-out scenes (measured, one seed).
Cost: 6.6 minutes on 2 CPU cores, building the data included.

    python train.py
    python train.py configs/retinanet_r18_scenes.py --loss.no-hardet   # the baseline
"""

from dataclasses import replace

from harmonic_jax.config import AnchorConfig, Config, RetinaNetConfig
from harmonic_jax.recipes import FROM_SCRATCH, SCENES, SCENES_MINUTES, SMALL_RESNET


def config() -> Config:
    return Config(
        name="retinanet_r18_scenes",
        data=SCENES,
        model=RetinaNetConfig(
            backbone=SMALL_RESNET,
            levels=(3, 5),
            channels=64,
            head_convs=2,
            head_norm="group",
            anchors=AnchorConfig(size_factor=2.5, scales=(1.0, 2**0.5)),
        ),
        optim=replace(FROM_SCRATCH, learning_rate=4e-3, warmup_steps=100),
        train=SCENES_MINUTES,
    )
