"""Faster R-CNN and Mask R-CNN."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config.parts import (
    AnchorConfig,
    BackboneConfig,
    MatchConfig,
    NmsName,
    check_postprocess,
)

NormName = Literal["none", "batch", "group"]


def _check_groups(field: str, channels: int, norm: str) -> None:
    require(norm != "group" or channels % 8 == 0, field, channels, "a multiple of 8 with `group`")


@dataclasses.dataclass(frozen=True)
class RPNConfig:
    """Region proposal network (Ren et al. 2015): anchors -> objectness -> proposals."""

    anchors: AnchorConfig = AnchorConfig(size_factor=8.0, scales=(1.0,))
    """One size a level: 32 pixels on P2 to 512 on P6."""
    num_convs: int = 1
    """3x3 convolutions before the outputs; torchvision's v2 has 2."""
    match: MatchConfig = MatchConfig(positive_iou=0.7, negative_iou=0.3)
    num_samples: int = 256
    """Anchors an image that the losses see."""
    positive_fraction: float = 0.5
    """Upper bound of the positives among them."""
    smooth_l1_beta: float = 1 / 9
    """torchvision's; detectron2 has 0, the L1 loss."""
    topk_train: int = 2000
    """Best anchors of each level that enter the suppression, in training."""
    topk_eval: int = 1000
    nms_iou: float = 0.7
    num_proposals_train: int = 1000
    """Proposals of all levels together, in training; torchvision keeps 2000."""
    num_proposals_eval: int = 1000

    def __post_init__(self) -> None:
        check_fields(
            self,
            "rpn",
            num_convs="[1, 16]",
            num_samples="[1, 100000]",
            positive_fraction="(0, 1]",
            smooth_l1_beta="[0, 1000]",
            topk_train="[1, 100000]",
            topk_eval="[1, 100000]",
            nms_iou="[0, 1]",
            num_proposals_train="[1, 100000]",
            num_proposals_eval="[1, 100000]",
        )


@dataclasses.dataclass(frozen=True)
class RoIAlignConfig:
    """How features are cut out of the pyramid (He et al. 2017)."""

    aligned: bool = True
    """Cell centers lie at half-integers, which is right; False: torchvision's detectors."""
    sampling_ratio: int = 2
    """Samples of a bin along each axis."""
    canonical_size: float = 224.0
    """Side in pixels of a box that is pooled from P4; half of it goes to P3, and so on."""

    def __post_init__(self) -> None:
        check_fields(self, "roi_align", sampling_ratio="[1, 8]", canonical_size="[1, 16384]")


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
    """The RoI head: pooled features -> classes and a box for each of them."""

    layers: Literal["two_fc", "four_conv_fc"] = "two_fc"
    """`two_fc`: two hidden layers; `four_conv_fc`: four 3x3 convolutions and one hidden layer."""
    norm: NormName = "none"
    """Of the convolutions; torchvision's v2 has `batch`."""
    num_hidden: int = 1024
    pool_size: int = 7
    match: MatchConfig = MatchConfig(positive_iou=0.5, negative_iou=0.5, low_quality=False)
    num_samples: int = 512
    """RoIs an image that the losses see, out of proposals and ground truth."""
    positive_fraction: float = 0.25
    """Upper bound of the positives among them."""
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the regression targets dx, dy, dw, dh: the inverse of SSD's variances."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "box_head",
            num_hidden="[1, 16384]",
            pool_size="[1, 64]",
            num_samples="[1, 100000]",
            positive_fraction="(0, 1]",
            delta_weights="[0.001, 1000]",
        )
        require(
            self.norm == "none" or self.layers == "four_conv_fc",
            "box_head.norm",
            self.norm,
            "none with layers = two_fc, which have no convolution",
        )


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """The mask head: pooled features -> a mask of twice the side for each class."""

    num_convs: int = 4
    channels: int = 256
    norm: NormName = "none"
    """torchvision's v2 has `batch`."""
    pool_size: int = 14

    def __post_init__(self) -> None:
        check_fields(
            self, "mask_head", num_convs="[0, 16]", channels="[8, 4096]", pool_size="[1, 64]"
        )
        _check_groups("mask_head.channels", self.channels, self.norm)


@dataclasses.dataclass(frozen=True)
class RoIPostprocessConfig:
    """From what the RoI head says to final boxes."""

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    min_size: float = 0.01
    """Boxes with a shorter side, in pixels, are dropped."""
    nms: NmsName = "class"
    """`class`: of boxes of a class that overlap, the best stays; `agnostic`: of any classes;
    `soft_linear`, `soft_gaussian`, `matrix`: others lose score; `weighted`: they are averaged."""
    nms_sigma: float = 0.5
    """How soft `soft_gaussian` and `matrix` are."""

    def __post_init__(self) -> None:
        check_postprocess(self, min_size="[0, 16384]")


@dataclasses.dataclass(frozen=True)
class FasterRCNNConfig:
    """Faster R-CNN (Ren et al. 2015) on a ResNet feature pyramid (Lin et al. 2017)."""

    backbone: BackboneConfig = BackboneConfig()
    levels: tuple[int, int] = (2, 6)
    """First and last pyramid level of the RPN; RoIs are pooled from those up to 5."""
    channels: int = 256
    fpn_norm: NormName = "none"
    """torchvision's v2 has `batch`."""
    rpn: RPNConfig = RPNConfig()
    roi_align: RoIAlignConfig = RoIAlignConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    postprocess: RoIPostprocessConfig = RoIPostprocessConfig()

    def __post_init__(self) -> None:
        check_fields(self, "model", levels="[2, 7]", channels="[8, 4096]")
        low, high = self.levels
        require(
            2 <= low <= 5 <= high <= 7, "model.levels", self.levels, "2 <= first <= 5 <= last <= 7"
        )
        for norm in (self.fpn_norm, self.box_head.norm):
            _check_groups("model.channels", self.channels, norm)

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: the backbone's last stride."""
        return 32


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig(FasterRCNNConfig):
    """Mask R-CNN (He et al. 2017): Faster R-CNN and a mask for each detection."""

    mask_head: MaskHeadConfig = MaskHeadConfig()
