"""RefineDet512 VGG-16 on PASCAL VOC 2007+2012 trainval, evaluated on 2007 test.

Paper row: none (of RefineDet the paper reports VOC figures, which were not found).
Expected: 81.8 mAP without HarDet (the RefineDet paper). Not run here yet: it needs a GPU.
Cost: 120,000 steps of 32 images at 512 x 512, about 0.6 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/refinedet512_voc.py --model.backbone.weights vgg16_features.pth
    python train.py configs/refinedet512_voc.py --model.backbone.weights vgg16_features.pth \\
        --data.format voc --data.root VOCdevkit \\
        --data.train-split 2007_trainval+2012_trainval --data.eval-split 2007_test
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.recipes import REFINEDET_LOSS, SSD_SGD, SSD_VOC, VOC, for_ssd


def config() -> Config:
    return Config(
        name="refinedet512_voc",
        data=for_ssd(VOC, 512),
        model=RefineDetConfig(),
        loss=REFINEDET_LOSS,
        optim=SSD_SGD,
        train=SSD_VOC,
    )
