"""Mask R-CNN on a narrow ResNet-18 for the built-in fashion scenes, from scratch.

Not a row of the paper: a run of minutes on a laptop's processor that goes the whole way.
Expected: box AP50 0.37, AP 0.20 and mask AP50 0.35, AP 0.18 after a run of 500 steps
(--train.steps 500; measured, one seed). The whole run of 2000 steps has not been made yet.
Cost: not timed alone; 7 images a second on 2 CPU cores that did much else.

    python train.py configs/mask_rcnn_r18_scenes.py
    python train.py configs/mask_rcnn_r18_scenes.py --loss.no-hardet   # the baseline
"""

from dataclasses import replace

from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    Config,
    MaskHeadConfig,
    MaskRCNNConfig,
    RoIAlignConfig,
    RPNConfig,
)
from harmonic_jax.recipes import FROM_SCRATCH, SCENES, SCENES_MINUTES, SMALL_RESNET


def config() -> Config:
    return Config(
        name="mask_rcnn_r18_scenes",
        data=replace(SCENES, masks=True, mask_size=56),
        # Everything is smaller by the ratio of image sizes, 800 to 96: anchors, RoIs, counts.
        model=MaskRCNNConfig(
            backbone=SMALL_RESNET,
            levels=(2, 5),
            channels=64,
            fpn_norm="group",
            rpn=RPNConfig(
                anchors=AnchorConfig(size_factor=4.0, scales=(1.0,)),
                num_samples=64,
                topk_train=200,
                topk_eval=200,
                num_proposals_train=100,
                num_proposals_eval=100,
            ),
            roi_align=RoIAlignConfig(canonical_size=64.0),
            box_head=BoxHeadConfig(num_hidden=256, num_samples=64),
            mask_head=MaskHeadConfig(num_convs=2, channels=64, norm="group"),
        ),
        optim=replace(FROM_SCRATCH, learning_rate=2e-3, warmup_steps=100),
        train=SCENES_MINUTES,
    )
