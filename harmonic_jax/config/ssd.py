"""SSD, and the parts it shares with RefineDet: VGG-16, matching, postprocessing."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config.parts import NmsName, check_postprocess

ExtraLayer = Literal["3x3/2", "3x3", "4x4"]


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """VGG-16 (Simonyan & Zisserman 2015) with fc6 and fc7 as convolutions."""

    width: int = 64
    """Channels of the first stage; 64 is the published network."""
    norm: Literal["none", "batch"] = "none"
    """`none`: the published network, which needs weights; `batch`: a batch norm behind every
    convolution of the backbone and of the layers above it, to train from scratch."""
    frozen_stages: int = 0
    """Stages that are not trained, up to 5: 1 is conv1_1 and conv1_2."""
    normalization: Literal["caffe", "torchvision"] = "caffe"
    """What the weights were trained on: `caffe`: 0..255 minus the mean colour; `torchvision`:
    that over the standard deviation. vgg16's classifier weights need the second; the original
    Caffe weights, torchvision's IMAGENET1K_FEATURES and its ssd300_vgg16 the first."""
    weights: str | None = None
    """A torchvision-layout VGG-16 state dict: .safetensors, or .pth (read with weights_only)."""

    def __post_init__(self) -> None:
        check_fields(self, "backbone", width="[4, 1024]", frozen_stages="[0, 5]")


@dataclasses.dataclass(frozen=True)
class DefaultBoxConfig:
    """Default boxes of SSD; the defaults are SSD300's on VOC, 8732 boxes.

    A location of level l has a square of side sizes[l], one of side sqrt(sizes[l] sizes[l + 1])
    and, for each r in 2 .. max_ratios[l], two boxes of the area sizes[l]**2: r times as wide as
    high, and r times as high as wide.
    """

    sizes: tuple[float, ...] = (30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0)
    """Pixels; one more than there are levels."""
    max_ratios: tuple[int, ...] = (2, 3, 3, 3, 2, 2)
    """For each level, the ratio of the longest boxes; 1: squares only."""
    steps: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0, 0.0, 0.0)
    """Pixels between the centres of a level; 0 spreads them evenly over the image."""
    clip_sides: bool = False
    """Cut sides longer than the image's to the image's (torchvision's choice)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "default_boxes",
            sizes="[0.1, 100000]",
            max_ratios="[1, 16]",
            steps="[0, 10000]",
        )
        levels = len(self.max_ratios)
        require(
            2 <= levels <= 16,
            "default_boxes.max_ratios",
            self.max_ratios,
            "2 to 16 whole numbers, one a level",
        )
        require(
            len(self.sizes) == levels + 1,
            "default_boxes.sizes",
            self.sizes,
            f"{levels + 1} sizes, one more than default_boxes.max_ratios has levels",
        )
        require(
            len(self.steps) == levels,
            "default_boxes.steps",
            self.steps,
            f"{levels} numbers, one a level of default_boxes.max_ratios",
        )

    @property
    def per_location(self) -> tuple[int, ...]:
        return tuple(2 * ratio for ratio in self.max_ratios)


@dataclasses.dataclass(frozen=True)
class MultiBoxMatchConfig:
    """Assignment of default boxes, and the choice of negatives."""

    positive_iou: float = 0.5
    """Besides, every object has the default box that overlaps it most for itself."""
    negative_ratio: float = 3.0
    """Negatives a positive, in each image; those with the highest loss are taken."""

    def __post_init__(self) -> None:
        check_fields(self, "match", positive_iou="(0, 1]", negative_ratio="[0, 1e6]")


@dataclasses.dataclass(frozen=True)
class MultiBoxPostprocessConfig:
    """From raw predictions of a softmax head to final boxes."""

    score_threshold: float = 0.01
    topk_per_class: int = 400
    nms_iou: float = 0.45
    max_detections: int = 200
    nms: NmsName = "class"
    """`class`: of boxes of a class that overlap, the best stays; `agnostic`: of any classes;
    `soft_linear`, `soft_gaussian`, `matrix`: others lose score; `weighted`: they are averaged."""
    nms_sigma: float = 0.5
    """How soft `soft_gaussian` and `matrix` are."""

    def __post_init__(self) -> None:
        check_postprocess(self, topk_per_class="[1, 100000]")


@dataclasses.dataclass(frozen=True)
class SSDConfig:
    """SSD (Liu et al. 2016) on VGG-16: conv4_3, fc7, and a level for each extra layer."""

    backbone: VGGConfig = VGGConfig()
    fc6_dilation: int = 6
    """Holes of fc6, which reads a map of stride 16; small images need smaller ones."""
    extra_layers: tuple[ExtraLayer, ...] = ("3x3/2", "3x3/2", "3x3", "3x3")
    """Second convolutions of the layers above fc7; the first is 1x1. `3x3/2` halves the map;
    `3x3` (unpadded) takes two cells off each side; `4x4` (padded by one cell) takes one off."""
    l2_scale: float = 20.0
    """Length of conv4_3's feature vectors at the start of training."""
    default_boxes: DefaultBoxConfig = DefaultBoxConfig()
    match: MultiBoxMatchConfig = MultiBoxMatchConfig()
    postprocess: MultiBoxPostprocessConfig = MultiBoxPostprocessConfig()

    def __post_init__(self) -> None:
        check_fields(self, "model", fc6_dilation="[1, 64]", l2_scale="[0.001, 1000]")
        levels = len(self.default_boxes.max_ratios)
        require(
            len(self.extra_layers) == levels - 2,
            "model.extra_layers",
            self.extra_layers,
            f"{levels - 2} layers: conv4_3, fc7 and they are the levels of model.default_boxes",
        )

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: none, every layer rounds its size up."""
        return 1

    def level_shapes(self, image_shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Height and width of every level: conv4_3, fc7, and one for each extra layer.

        Strides 8 and 16 round up; `3x3/2` halves, rounding up; `3x3` takes two cells of each side,
        `4x4` one.

        Args:
          image_shape: height and width of the padded image, pixels.

        Returns:
          (h_l, w_l) of each level, finest first.

        Raises:
          ConfigError: nothing is left of a level.

        >>> SSDConfig().level_shapes((300, 300))
        ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
        """
        height, width = image_shape
        shapes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16)]
        for layer in self.extra_layers:
            h, w = shapes[-1]
            if layer == "3x3/2":
                shapes.append((-(-h // 2), -(-w // 2)))
            else:
                lost = {"3x3": 2, "4x4": 1}[layer]
                shapes.append((h - lost, w - lost))
            require(
                min(shapes[-1]) >= 1,
                "model.extra_layers",
                self.extra_layers,
                f"shorter for images of {height} x {width} (data.short_sides, data.max_side): no "
                f"cell is left of level {len(shapes)}",
            )
        return tuple(shapes)
