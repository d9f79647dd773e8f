"""torchvision's names of a feature pyramid."""

import re

from harmonic_jax.pretrained.layout import LEAF_NAMES, Path

_OLD_BLOCK = re.compile(r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)")


def fpn_name(leaf: Path) -> str:
    """torchvision's name of a leaf of `models.fpn.FeaturePyramid`.

    Example:
        >>> fpn_name(("laterals", 0, "kernel"))
        'inner_blocks.0.0.weight'
        >>> fpn_name(("extra", 0, "bias"))
        'extra_blocks.p6.bias'

    Source:
        `torchvision.ops.feature_pyramid_network`.
    """
    name = LEAF_NAMES[str(leaf[-1])]
    match leaf[:-1]:
        case ("laterals", i):
            return f"inner_blocks.{i}.0.{name}"
        case ("outputs", i):
            return f"layer_blocks.{i}.0.{name}"
        case ("lateral_norms", i):
            return f"inner_blocks.{i}.1.{name}"
        case ("output_norms", i):
            return f"layer_blocks.{i}.1.{name}"
        case ("extra", int(i)):
            return f"extra_blocks.p{i + 6}.{name}"
    raise KeyError(f"{leaf} is no leaf of a feature pyramid")


def fpn_renamed(name: str) -> str:
    """Today's name of a tensor of a pyramid in a file from before torchvision 0.12.

    Example:
        >>> fpn_renamed("backbone.fpn.inner_blocks.2.bias")
        'backbone.fpn.inner_blocks.2.0.bias'
        >>> fpn_renamed("backbone.fpn.inner_blocks.2.0.bias")
        'backbone.fpn.inner_blocks.2.0.bias'
    """
    return _OLD_BLOCK.sub(r"\1.\2.0.\3", name)
