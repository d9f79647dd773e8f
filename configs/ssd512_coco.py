"""SSD512 VGG-16 on COCO 2017, with the smaller default boxes of the Caffe original.

Paper row: none.
Expected: 28.8 AP on test-dev without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 400,000 steps of 32 images at 512 x 512, about 0.6 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd512_coco.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd512_coco.py --model.backbone.weights vgg16_features.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, DefaultBoxConfig, SSDConfig
from harmonic_jax.recipes import COCO, SSD_COCO, SSD_LOSS, SSD_SGD, for_ssd


def config() -> Config:
    return Config(
        name="ssd512_coco",
        data=for_ssd(COCO, 512),
        model=SSDConfig(
            extra_layers=("3x3/2", "3x3/2", "3x3/2", "3x3/2", "4x4"),
            default_boxes=DefaultBoxConfig(
                sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
                max_ratios=(2, 3, 3, 3, 3, 2, 2),
                steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
            ),
        ),
        loss=SSD_LOSS,
        optim=replace(SSD_SGD, milestones=(0.7, 0.9)),
        train=SSD_COCO,
    )
