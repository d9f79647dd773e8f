"""RefineDet on a narrow VGG-16 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: AP50 0.81, AP 0.40 on the test split after 120 steps (measured, one seed).
The whole run was not measured.
Cost: not timed alone.

    python train.py configs/refinedet_vgg_bccd.py --data.root DIR
    python train.py configs/refinedet_vgg_bccd.py --data.root DIR --loss.no-hardet   # baseline
"""

from dataclasses import replace

from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.recipes import BCCD, BCCD_HOUR, FROM_SCRATCH, REFINEDET_LOSS, SMALL_VGG


def config() -> Config:
    return Config(
        name="refinedet_vgg_bccd",
        data=replace(BCCD, stride=16),
        model=RefineDetConfig(
            backbone=replace(SMALL_VGG, fc6_dilation=2),
            # The published 10 and 8 are for four times as many channels.
            l2_scales=(5.0, 4.0),
            extra_channels=128,
            norm="batch",
            channels=64,
            # Anchors of 20, 40, 80 and 160 pixels: platelets have 20, red cells 50, white ones 120.
            size_factor=2.5,
        ),
        loss=REFINEDET_LOSS,
        optim=replace(FROM_SCRATCH, warmup_steps=50, ema_decay=0.99),
        train=replace(BCCD_HOUR, steps=1000, eval_every=250, checkpoint_every=125),
    )
