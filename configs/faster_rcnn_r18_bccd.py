"""Faster R-CNN on a narrow ResNet-18 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: not measured yet; RetinaNet reaches AP50 0.88, AP 0.55 on the test split.
Cost: not timed; about an hour on 2 CPU cores.

    python train.py configs/faster_rcnn_r18_bccd.py --data.root DIR
    python train.py configs/faster_rcnn_r18_bccd.py --data.root DIR --loss.no-hardet   # baseline
"""

from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    Config,
    FasterRCNNConfig,
    RoIAlignConfig,
    RPNConfig,
)
from harmonic_jax.recipes import BCCD, BCCD_HOUR, FROM_SCRATCH, SMALL_RESNET


def config() -> Config:
    return Config(
        name="faster_rcnn_r18_bccd",
        data=BCCD,
        model=FasterRCNNConfig(
            backbone=SMALL_RESNET,
            levels=(2, 5),
            channels=64,
            fpn_norm="group",
            # Cells are 20 to 120 pixels wide: anchors of 16 to 128.
            rpn=RPNConfig(
                anchors=AnchorConfig(size_factor=4.0, scales=(1.0,)),
                num_samples=128,
                topk_train=500,
                topk_eval=500,
                num_proposals_train=300,
                num_proposals_eval=300,
            ),
            roi_align=RoIAlignConfig(canonical_size=112.0),
            box_head=BoxHeadConfig(num_hidden=256, num_samples=128),
        ),
        optim=FROM_SCRATCH,
        train=BCCD_HOUR,
    )
