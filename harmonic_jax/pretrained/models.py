"""torchvision's published models by name, as configs of ours."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    DataConfig,
    DefaultBoxConfig,
    FasterRCNNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ModelConfig,
    PostprocessConfig,
    ResNetConfig,
    RetinaNetConfig,
    RoIAlignConfig,
    RPNConfig,
    SSDConfig,
)

PLACEHOLDER = "N/A"  # the name of every gap
# The class list of its COCO weights: the position is COCO's category number.
# These numbers have gaps, and 0 is torchvision's background: outputs that are never trained.
COCO_91 = (
    "__background__",
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird"),
    *("cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "N/A"),
    *("backpack", "umbrella", "N/A", "N/A", "handbag", "tie", "suitcase", "frisbee", "skis"),
    *("snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "N/A", "wine glass", "cup", "fork", "knife"),
    *("spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog"),
    *("pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "N/A", "dining table"),
    *("N/A", "N/A", "toilet", "N/A", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "N/A", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)


@dataclasses.dataclass(frozen=True)
class PublishedDetector:
    """A detector of another library, with the classes of its weights.

    Attributes:
        category_ids: COCO's category numbers of the classes.
        data: COCO with the library's image sizes.
    """

    model: ModelConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    data: DataConfig


_COCO_800 = DataConfig(
    format="coco",
    root="coco",
    train_split="train2017",
    eval_split="val2017",
    short_sides=(800,),
    max_side=1333,
    resizing="torchvision",
)
_COCO_300 = dataclasses.replace(
    _COCO_800, short_sides=(300,), max_side=300, resize="warp", stride=1
)
# The first detectors have constant norms and do not train the first two stages. torchvision sets
# the norms' epsilon to 0 when it loads its COCO_V1 weights.
_V1_BACKBONE = ResNetConfig(depth=50, norm="frozen", norm_eps=0.0, frozen_stages=2)
_V2_BACKBONE = ResNetConfig(depth=50, norm="batch", frozen_stages=2)


_RETINANET = RetinaNetConfig(
    backbone=_V1_BACKBONE,
    extra_levels_from="p5",
    anchors=AnchorConfig(rounding="torchvision"),
    postprocess=PostprocessConfig(max_detections=300),
)
_RETINANET_V2 = dataclasses.replace(
    _RETINANET, backbone=_V2_BACKBONE, extra_levels_from="c5", head_norm="group"
)
_RPN = RPNConfig(
    anchors=AnchorConfig(size_factor=8.0, scales=(1.0,), rounding="torchvision"),
    num_proposals_train=2000,
)
_FASTER_RCNN = FasterRCNNConfig(
    backbone=_V1_BACKBONE, rpn=_RPN, roi_align=RoIAlignConfig(aligned=False)
)
_FASTER_RCNN_V2 = dataclasses.replace(
    _FASTER_RCNN,
    backbone=_V2_BACKBONE,
    fpn_norm="batch",
    rpn=dataclasses.replace(_RPN, num_convs=2),
    box_head=BoxHeadConfig(layers="four_conv_fc", norm="batch"),
)


def _two_stage(model: FasterRCNNConfig) -> PublishedDetector:
    # Their class 0 is background: the last class of ours, which has no name.
    data = dataclasses.replace(_COCO_800, masks=isinstance(model, MaskRCNNConfig))
    return PublishedDetector(model, COCO_91[1:], tuple(range(1, 91)), data)


# The boxes of the Caffe original's COCO config, sides clipped.
SSD300_VGG16 = SSDConfig(
    default_boxes=DefaultBoxConfig(
        sizes=tuple(3.0 * percent for percent in (7, 15, 33, 51, 69, 87, 105)), clip_sides=True
    )
)


def _retinanet(model: RetinaNetConfig) -> PublishedDetector:
    # Every name is a class here: its sigmoids have no background, but an output for class 0.
    return PublishedDetector(model, COCO_91, tuple(range(91)), _COCO_800)


DETECTORS: Mapping[str, PublishedDetector] = MappingProxyType(
    {
        "retinanet_resnet50_fpn": _retinanet(_RETINANET),
        "retinanet_resnet50_fpn_v2": _retinanet(_RETINANET_V2),
        "ssd300_vgg16": PublishedDetector(
            SSD300_VGG16, COCO_91[1:], tuple(range(1, 91)), _COCO_300
        ),
        "fasterrcnn_resnet50_fpn": _two_stage(_FASTER_RCNN),
        "fasterrcnn_resnet50_fpn_v2": _two_stage(_FASTER_RCNN_V2),
        "maskrcnn_resnet50_fpn": _two_stage(MaskRCNNConfig(**vars(_FASTER_RCNN))),
        "maskrcnn_resnet50_fpn_v2": _two_stage(
            MaskRCNNConfig(**vars(_FASTER_RCNN_V2), mask_head=MaskHeadConfig(norm="batch"))
        ),
    }
)

# Any detector with this backbone.
CLASSIFIERS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "resnet18": RetinaNetConfig(ResNetConfig(depth=18)),
        "resnet34": RetinaNetConfig(ResNetConfig(depth=34)),
        "resnet50": RetinaNetConfig(ResNetConfig(depth=50)),
        "resnet101": RetinaNetConfig(ResNetConfig(depth=101)),
        "resnext50_32x4d": RetinaNetConfig(ResNetConfig(50, groups=32, width_per_group=4)),
        "resnext101_32x8d": RetinaNetConfig(ResNetConfig(101, groups=32, width_per_group=8)),
        "resnext101_64x4d": RetinaNetConfig(ResNetConfig(101, groups=64, width_per_group=4)),
        "vgg16": SSDConfig(),
    }
)
