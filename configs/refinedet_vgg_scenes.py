"""RefineDet on a narrow VGG-16 for the built-in fashion scenes, from scratch.

Not a row of the paper: a run of minutes on a laptop's processor that goes the whole way.
Expected: AP50 0.51, AP 0.30 on the held-out scenes (measured, one seed).
Cost: about 1.6 seconds a step on 2 CPU cores that did much other work as well.

    python train.py configs/refinedet_vgg_scenes.py
    python train.py configs/refinedet_vgg_scenes.py --loss.no-hardet   # the baseline
"""

from dataclasses import replace

from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.recipes import FROM_SCRATCH, REFINEDET_LOSS, SCENES, SCENES_MINUTES, SMALL_VGG


def config() -> Config:
    return Config(
        name="refinedet_vgg_scenes",
        data=SCENES,
        model=RefineDetConfig(
            backbone=replace(SMALL_VGG, fc6_dilation=1),
            # The published 10 and 8 are for four times as many channels.
            l2_scales=(5.0, 4.0),
            extra_channels=128,
            norm="batch",
            channels=64,
            # Anchors of 20, 40, 80 and 160 pixels; the last matches nothing, and costs nothing.
            size_factor=2.5,
        ),
        loss=REFINEDET_LOSS,
        optim=replace(FROM_SCRATCH, learning_rate=2e-3, warmup_steps=50, ema_decay=0.99),
        train=replace(SCENES_MINUTES, steps=1200, eval_every=600, checkpoint_every=300),
    )
