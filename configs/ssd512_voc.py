"""SSD512 VGG-16 on PASCAL VOC 2007+2012 trainval, evaluated on 2007 test.

Paper row: none (of SSD the paper reports VOC figures, which were not found).
Expected: 79.8 mAP without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 120,000 steps of 32 images at 512 x 512, about 0.6 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd512_voc.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd512_voc.py --model.backbone.weights vgg16_features.pth \\
        --data.format voc --data.root VOCdevkit \\
        --data.train-split 2007_trainval+2012_trainval --data.eval-split 2007_test
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config, DefaultBoxConfig, SSDConfig
from harmonic_jax.recipes import SSD_LOSS, SSD_SGD, SSD_VOC, VOC, for_ssd


def config() -> Config:
    return Config(
        name="ssd512_voc",
        data=for_ssd(VOC, 512),
        model=SSDConfig(
            extra_layers=("3x3/2", "3x3/2", "3x3/2", "3x3/2", "4x4"),
            default_boxes=DefaultBoxConfig(
                sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
                max_ratios=(2, 3, 3, 3, 3, 2, 2),
                steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
            ),
        ),
        loss=SSD_LOSS,
        optim=SSD_SGD,
        train=SSD_VOC,
    )
