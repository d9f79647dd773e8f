"""Images and boxes: where they come from, and the shapes in which they reach the network."""

import dataclasses
import math
from typing import Annotated, Literal

from harmonic_jax.checks import check_fields, require


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, applied in this order. Partner images are drawn from
    those that are trained on; a new image has the size at which its first one reaches the network.
    """

    mosaic: Annotated[float, "[0, 1]"] = 0.0
    """Probability of four images in one, their corners at a random point (YOLOv4: 1)."""
    large_scale_jitter: Annotated[tuple[float, float] | None, "[0.05, 4]"] = None
    """Least and largest factor by which an image, or a mosaic, is scaled, then cut or padded
    (Ghiasi et al. 2021: 0.1 2.0)."""
    copy_paste: Annotated[float, "[0, 1]"] = 0.0
    """Probability of objects of another image over this one, through their masks (data.masks)."""
    mixup: Annotated[float, "[0, 1]"] = 0.0
    """Probability of a blend with another image, about half and half, with the objects of both."""
    photometric: bool = False
    """Brightness, contrast, saturation, hue and channel order, as SSD does."""
    expand: Annotated[float, "[1, 8]"] = 1.0
    """Largest side ratio of the canvas an image may be placed on (SSD: 4); 1 is off."""
    crop: bool = False
    """SSD's random crop with a minimum IoU to some object."""
    flip: Annotated[float, "[0, 1]"] = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Annotated[float, "[0, 1]"] = 0.0
    """Probability of a vertical flip, for images without an up (microscopes, satellites)."""

    erase: Annotated[float, "[0, 1]"] = 0.0
    """Probability of a random rectangle of noise (Zhong et al. 2020: 0.5); boxes stay."""

    def __post_init__(self) -> None:
        check_fields(self, "augment")
        factors = self.large_scale_jitter
        require(
            factors is None or factors[0] <= factors[1],
            "augment.large_scale_jitter",
            factors,
            "(least, largest) with least <= largest",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images and boxes come from, and the shapes in which they reach the network."""

    format: Literal["tfds", "coco", "voc", "yolo"] = "tfds"
    """`tfds`: a TFDS name; `coco`: a folder in COCO JSON layout; `voc`: one in VOC XML layout;
    `yolo`: one with data.yaml and text labels."""
    name: str = "fashion_scenes"
    """TFDS name: `fashion_scenes`, `coco/2017`, `voc/2007`, `voc/2007+2012`; unused for folders."""
    root: str | None = None
    """The folder of the data, of `yolo` also data.yaml itself; with `tfds`, the TFDS data directory
    (None: its default)."""
    train_split: str = "train"
    eval_split: str = "validation"
    eval_share: Annotated[float | None, "(0, 1)"] = None
    """Share of a folder's only split, or of images without lists, that becomes `eval_split`, the
    rest `train_split`; by a hash of the file's name, so that one added later moves no other."""
    short_sides: Annotated[tuple[int, ...], "[32, 4096]"] = (800,)
    """Training images are resized so that the short side is one of these, the same for a whole
    batch; evaluation: the last."""
    max_side: Annotated[int, "[32, 16384]"] = 1333
    """Upper bound of the long side after resizing."""
    resize: Literal["fit", "warp"] = "fit"
    """`fit` keeps the aspect ratio and pads; `warp` stretches to short_side x short_side (SSD)."""
    resizing: Literal["default", "torchvision"] = "default"
    """`default`: sizes rounded to the nearest pixel, areas averaged below half the size;
    `torchvision`: sizes cut to whole pixels, and bilinear always."""
    stride: Annotated[int, "[1, 256]"] = 32
    """Padded sides are multiples of this."""
    max_objects: Annotated[int, "[1, 10000]"] = 100
    """Objects an image is padded to; of more, the largest are kept and the rest counted."""
    max_pixels: Annotated[int, "[1024, 1e9]"] = 64_000_000
    """Images with more pixels are refused before they are decoded."""
    use_difficult: bool = True
    """Train on VOC objects marked difficult (evaluation ignores them either way)."""
    keep_empty: bool = False
    """Train on images without objects."""
    masks: bool = False
    """Load the objects' instance masks (Mask R-CNN; COCO folders and fashion scenes have them)."""
    mask_size: Annotated[int, "[14, 512]"] = 112
    """Side of the grid, over an object's own box, on which its mask is held for training."""
    augment: AugmentConfig = AugmentConfig()
    num_threads: Annotated[int, "[1, 256]"] = 4
    """Decoding threads in each process."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        require(
            self.format == "tfds" or self.root is not None,
            "data.root",
            self.root,
            f"the folder of the {self.format} data set (--data.root DIR)",
        )
        require(
            not self.eval_share or (self.format != "tfds" and self.train_split != self.eval_split),
            "data.eval_share",
            self.eval_share,
            "None with tfds, which has slices (train[:80%]), and where both splits have one name",
        )
        require(
            self.masks or not self.augment.copy_paste,
            "data.augment.copy_paste",
            self.augment.copy_paste,
            "0 unless data.masks is True: objects are pasted through their masks",
        )
        sides = self.short_sides
        require(len(sides) > 0, "data.short_sides", sides, "one or more sizes in pixels")
        require(self.max_side >= max(sides), "data.max_side", self.max_side, f">= {max(sides)}")

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """The padded (height, width) shapes: landscape and portrait, or one where they agree; of
        stretched images one for each short side, evaluation's first."""
        if self.resize == "warp":
            return tuple(dict.fromkeys(map(self.square, reversed(self.short_sides))))
        short = _round_up(max(self.short_sides), self.stride)
        long = _round_up(self.max_side, self.stride)
        return ((short, long), (long, short)) if long > short else ((short, short),)

    def bucket_of(self, height: int, width: int) -> tuple[int, int]:
        """The padded shape of an image: square ones go with the landscapes."""
        return self.buckets[-1 if height > width and self.resize == "fit" else 0]

    def square(self, short_side: int) -> tuple[int, int]:
        """The padded shape of images that are stretched to a side."""
        side = _round_up(short_side, self.stride)
        return side, side


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
