"""Parts that detectors share: backbone, anchors, assignment, postprocessing."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields, require


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """ResNet (He et al. 2016, v1.5: the stride sits on the 3x3 convolution), or ResNeXt."""

    depth: Literal[10, 18, 34, 50, 101] = 50
    """10 has one block a stage: no published weights, quick to compile."""
    width: int = 64
    """Channels of the stem; 64 is the published network."""
    groups: int = 1
    """Groups of the 3x3 convolutions: 32 in ResNeXt-101 32x4d (Xie et al. 2017)."""
    width_per_group: int = 64
    """Channels of a group in the first stage at width 64: 4 in ResNeXt-101 32x4d."""
    norm: Literal["frozen", "batch"] = "frozen"
    """`frozen`: constant statistics and affine; `batch`: statistics of the global batch."""
    norm_eps: float = 1e-5
    """Added to the variance. 0 in torchvision's COCO weights of its first detectors."""
    frozen_stages: int = 0
    """Stages that are not trained: 1 is the stem, 2 adds the first residual stage, up to 5."""
    weights: str | None = None
    """A torchvision-layout ResNet state dict: .safetensors, or .pth (read with weights_only)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "backbone",
            width="[8, 1024]",
            groups="[1, 1024]",
            width_per_group="[1, 1024]",
            norm_eps="[0, 0.1]",
            frozen_stages="[0, 5]",
        )
        require(
            self.width * self.width_per_group % 64 == 0,
            "backbone.width_per_group",
            self.width_per_group,
            "such that backbone.width * backbone.width_per_group is a multiple of 64",
        )
        require(
            self.depth >= 50 or (self.groups, self.width_per_group) == (1, 64),
            "backbone.groups, backbone.width_per_group",
            (self.groups, self.width_per_group),
            "(1, 64) for depths without bottlenecks, 10 to 34",
        )


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Anchors of a pyramid: level l, stride 2**l, has base size `size_factor * 2**l`."""

    size_factor: float = 4.0
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rounding: Literal["none", "torchvision"] = "none"
    """`torchvision`: whole sides, corners rounded to whole pixels, and strides of image size //
    feature map size, as torchvision's weights were trained with."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "anchors",
            size_factor="[0.01, 1000]",
            scales="[0.001, 1000]",
            ratios="[0.001, 1000]",
        )
        for field, values in (("scales", self.scales), ("ratios", self.ratios)):
            require(
                0 < len(set(values)) == len(values) <= 16,
                f"anchors.{field}",
                values,
                "1 to 16 different numbers",
            )

    @property
    def per_location(self) -> int:
        return len(self.scales) * len(self.ratios)


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Max-IoU assignment."""

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    """Anchors with a best IoU in [negative_iou, positive_iou) are ignored."""
    low_quality: bool = True
    """Each object also claims the anchors that overlap it most, whatever their IoU."""

    def __post_init__(self) -> None:
        check_fields(self, "match", positive_iou="[0, 1]", negative_iou="[0, 1]")
        require(
            self.negative_iou <= self.positive_iou,
            "match.positive_iou",
            self.positive_iou,
            f"at least match.negative_iou = {self.negative_iou}",
        )


NmsName = Literal["class", "agnostic", "soft_linear", "soft_gaussian", "matrix", "weighted"]


def check_postprocess(config: object, **intervals: str) -> None:
    """What the postprocessing of every detector has; `intervals` of what this one has besides."""
    check_fields(
        config,
        "postprocess",
        score_threshold="[0, 1]",
        nms_iou="[0, 1]",
        nms_sigma="[0.001, 1000]",
        max_detections="[1, 10000]",
        **intervals,
    )


@dataclasses.dataclass(frozen=True)
class PostprocessConfig:
    """From raw predictions to final boxes."""

    score_threshold: float = 0.05
    topk_per_level: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100
    nms: NmsName = "class"
    """`class`: of boxes of a class that overlap, the best stays; `agnostic`: of any classes;
    `soft_linear`, `soft_gaussian`, `matrix`: others lose score; `weighted`: they are averaged."""
    nms_sigma: float = 0.5
    """How soft `soft_gaussian` and `matrix` are."""

    def __post_init__(self) -> None:
        check_postprocess(self, topk_per_level="[1, 100000]")
