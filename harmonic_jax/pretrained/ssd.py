"""torchvision's SSD state dict <-> ours."""

from harmonic_jax.config import DefaultBoxConfig, SSDConfig
from harmonic_jax.models.vgg import LAYOUT
from harmonic_jax.pretrained import layout
from harmonic_jax.pretrained.transform import Transform, background_last
from harmonic_jax.pretrained.vgg import vgg_name

# torchvision's ssd300_vgg16: the boxes of the Caffe original's COCO config, sides clipped.
SSD300_VGG16 = SSDConfig(
    default_boxes=DefaultBoxConfig(
        sizes=tuple(3.0 * percent for percent in (7, 15, 33, 51, 69, 87, 105)), clip_sides=True
    )
)
# Where its `features` end: conv4_3 and its ReLU, and the rest of VGG-16 is `extra.0`.
_NUM_FEATURES = sum(2 * num_convs + 1 for num_convs, _ in LAYOUT[:4]) - 1
# fc6 and fc7 in the sequence behind conv5_3.
_FC = {"fc6": "7.1", "fc7": "7.3"}


def ssd_layout(num_classes: int) -> layout.Layout:
    """The layout of `torchvision.models.detection.ssd300_vgg16`.

    Args:
        num_classes: without background, which is the first class there and the last here.
    """

    def transform(leaf: layout.Path, ndim: int) -> Transform:
        standard = layout.standard_transform(leaf, ndim)
        is_cls = leaf[:2] == ("head", "cls")
        return standard.then(background_last(num_classes)) if is_cls else standard

    return layout.Layout(ssd_name, transform)


def ssd_name(leaf: layout.Path) -> str:
    """torchvision's name of a leaf of `models.ssd.SSD` (without norms).

    Example:
        >>> ssd_name(("backbone", "stages", 3, 2, "conv", "kernel"))
        'backbone.features.21.weight'
        >>> ssd_name(("backbone", "stages", 4, 0, "conv", "kernel"))
        'backbone.extra.0.1.weight'
        >>> ssd_name(("head", "box", 5, "bias"))
        'head.regression_head.module_list.5.bias'
    """
    name = layout.LEAF_NAMES[str(leaf[-1])]
    match leaf[:-1]:
        case ("backbone", "stages", *_):
            number, _, kind = vgg_name(leaf[1:]).partition(".")
            if int(number) < _NUM_FEATURES:
                return f"backbone.features.{number}.{kind}"
            return f"backbone.extra.0.{int(number) - _NUM_FEATURES}.{kind}"
        case ("backbone", "fc6" | "fc7" as fc, "conv"):
            return f"backbone.extra.0.{_FC[fc]}.{name}"
        case ("l2_norm",):
            return "backbone.scale_weight"
        case ("extra", int(i), int(j), "conv"):
            return f"backbone.extra.{i + 1}.{2 * j}.{name}"
        case ("head", "cls", i):
            return f"head.classification_head.module_list.{i}.{name}"
        case ("head", "box", i):
            return f"head.regression_head.module_list.{i}.{name}"
    raise KeyError(f"{leaf} is no leaf of an SSD without norms")
