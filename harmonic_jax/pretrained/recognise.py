"""What the names in a state dict tell: for messages."""

import difflib
import re
from collections.abc import Iterable, Sequence

# The first that begins a name counts.
_KINDS = (
    (r"params/", "an export of harmonic_jax, which --init and --run take as it is"),
    (r"roi_heads\.keypoint_", "Keypoint R-CNN"),
    (r"roi_heads\.mask_head\.0\.1\.", "Mask R-CNN v2"),
    (r"roi_heads\.mask_", "Mask R-CNN"),
    (r"roi_heads\.box_head\.0\.0\.", "Faster R-CNN v2"),
    (r"roi_heads\.", "Faster R-CNN"),
    (r"head\.regression_head\.bbox_ctrness", "FCOS"),
    (r"head\.classification_head\.module_list\.0\.0\.", "SSDlite"),
    (r"head\.classification_head\.module_list\.", "SSD"),
    (r"head\.classification_head\.conv\.0\.1\.", "RetinaNet v2"),
    (r"head\.classification_head\.", "RetinaNet"),
    (r"backbone\.bottom_up\.", "a detector of Detectron2"),
    (r"bbox_head\.|backbone\.layer1\.", "a detector of MMDetection"),
    (r"transformer\.", "a transformer, of DETR's kind"),
    (r"\d+\.(conv|m\.0|cv1)\.", "a YOLO"),
    (r"features\.1\.running_mean", "VGG with batch norms"),
    (r"features\.0\.0\.|_?conv_stem", "MobileNet or EfficientNet"),
    (r"features\.34\.", "VGG-19"),
    (r"features\.28\.", "VGG-16"),
    (r"features\.0\.", "a VGG of fewer layers than VGG-16"),
)
# Blocks of the third stage, and whether they are bottlenecks -> depth.
_DEPTHS = {
    (1, False): 10, (2, False): 18, (6, False): 34,
    (6, True): 50, (23, True): 101, (36, True): 152,
}  # fmt: skip
_BODY = "backbone.body."
_COMPARED = 1000  # names among which an alike one is looked for


def recognise(names: Iterable[str]) -> str | None:
    """The model whose state dict has these names; None: unknown.

    >>> recognise(["layer1.0.conv1.weight", "layer3.0.conv1.weight", "layer3.1.conv1.weight"])
    'ResNet-18'
    >>> recognise(["roi_heads.mask_head.0.0.bias", "backbone.fpn.layer_blocks.0.0.bias"])
    'Mask R-CNN'
    """
    names = list(names)
    body = [name.removeprefix(_BODY) for name in names if name.startswith(_BODY)]
    resnet = _resnet(body or names)
    if resnet is not None and not body:
        return resnet
    for pattern, words in _KINDS:
        if any(re.match(pattern, name) for name in names):
            return f"{words} on {resnet}" if resnet else words
    return None


def _resnet(names: list[str]) -> str | None:
    blocks = {name.split(".")[1] for name in names if name.startswith("layer3.")}
    is_bottleneck = any(name.startswith("layer3.0.conv3.") for name in names)
    depth = _DEPTHS.get((len(blocks), is_bottleneck))
    return None if depth is None else f"ResNet-{depth}"


def side_by_side(missing: Sequence[str], surplus: Sequence[str], num_compared: int) -> list[str]:
    """A line for each name that only one side has; those that are alike share one.

    Args:
        missing: what the model needs and the file lacks.
        surplus: what the file has besides.
        num_compared: of how many missing names an alike one is looked for, which takes time.

    >>> side_by_side(["layer1.bn.weight", "fc.bias"], ["layer1.norm.weight", "scale"], 5)
    ['layer1.bn.weight is missing (there is layer1.norm.weight)', 'fc.bias is missing', \
'scale is not part of the model']
    """
    left, lines = list(surplus), []
    for number, name in enumerate(missing):
        candidates = left[:_COMPARED] if number < num_compared else []
        alike = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
        lines.append(f"{name} is missing" + (f" (there is {alike[0]})" if alike else ""))
        left = [other for other in left if other not in alike] if alike else left
    return lines + [f"{name} is not part of the model" for name in left]
