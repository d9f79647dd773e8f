"""SSD300 VGG-16 on COCO 2017, with the smaller default boxes of the Caffe original.

Paper row: none.
Expected: 25.1 AP on test-dev without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 400,000 steps of 32 images at 300 x 300, about 0.2 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd300_coco.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd300_coco.py --model.backbone.weights vgg16_features.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, DefaultBoxConfig, SSDConfig
from harmonic_jax.recipes import COCO, SSD_COCO, SSD_LOSS, SSD_SGD, for_ssd


def config() -> Config:
    return Config(
        name="ssd300_coco",
        data=replace(for_ssd(COCO, 300), stride=4),  # 300 is no multiple of 32
        model=SSDConfig(
            default_boxes=DefaultBoxConfig(sizes=(21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0))
        ),
        loss=SSD_LOSS,
        optim=replace(SSD_SGD, milestones=(0.7, 0.9)),
        train=SSD_COCO,
    )
