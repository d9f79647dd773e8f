"""Every field of every config: what cannot work is refused by name, before anything is made of it.

The tests walk over the classes and the types of their fields, so that a new field is held to it.
"""

import dataclasses
import math
from typing import Any, get_args, get_origin

import pytest

from harmonic_jax import config as c
from harmonic_jax.checks import MAX_ITEMS, MAX_TEXT, fields_of, options_of, shown
from harmonic_jax.inference import TTA

CLASSES = [
    kind
    for name in c.__all__
    if isinstance(kind := getattr(c, name), type) and dataclasses.is_dataclass(kind)
] + [TTA]
REQUIRED: dict[type, dict[str, Any]] = {c.Config: {"name": "x"}}

NUMBERS = (math.inf, -math.inf, math.nan, -1, -1e-9, 10**20, 1e39, 1e300, 2**63, 10**5000)
OTHERS = (None, True, "1", "", b"1", (), [], [1], {}, (1, 2, 3), ((),), object(), 1j, int)


def leaves(hint: Any) -> set[Any]:
    """The types of the values in a field: of its elements where it is a tuple."""
    return {
        leaf
        for option in options_of(hint)
        for leaf in (
            set().union(*(leaves(item) for item in get_args(option) if item is not Ellipsis))
            if get_origin(option) is tuple
            else {option}
        )
    }


FIELDS = [
    pytest.param(kind, name, hint, id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, hint in fields_of(kind).items()
]


def refused(kind: type, name: str, value: Any) -> str | None:
    """The message, or None where the value is taken."""
    try:
        made = kind(**(REQUIRED.get(kind, {}) | {name: value}))
    except c.ConfigError as error:
        message = str(error)
        assert len(message) < 500, message
        assert message.isprintable(), message
        return message
    assert getattr(made, name) is value
    return None


@pytest.mark.parametrize(("kind", "name", "hint"), FIELDS)
def test_any_value_is_taken_or_refused_by_name(kind: type, name: str, hint: Any) -> None:
    del hint
    default = getattr(kind(**REQUIRED.get(kind, {})), name)
    assert refused(kind, name, default) is None
    for value in (*NUMBERS, *OTHERS, 0, 1, 2**31, 0.5, "a" * 10**6, "\0", "\ud800"):
        message = refused(kind, name, value)
        if message is not None and " levels" not in message:  # of one tuple, to fit another
            words = (f"{name} is {shown(value)[:20]}", f"{name}, ", f"{name} = {shown(value)}")
            assert any(word in message for word in words), message


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [field for field in FIELDS if leaves(field.values[2]) & {int, float}],
)
def test_numbers_are_finite_and_bounded(kind: type, name: str, hint: Any) -> None:
    default = getattr(kind(**REQUIRED.get(kind, {})), name)
    for value in (*NUMBERS, True, "1", float(2**31), [1.0], None):
        tried: Any = value
        if tuple in map(get_origin, options_of(hint)):
            tried = (value, *(default or (1, 1))[1:])
        if tried is default or (tried is None and type(None) in options_of(hint)):
            continue
        message = refused(kind, name, tried)
        assert message is not None, tried
        assert f"{name} is {shown(tried)}" in message
        assert "[" in message or "(" in message, message


@pytest.mark.parametrize(("kind", "name", "hint"), FIELDS)
def test_tuples_have_a_length(kind: type, name: str, hint: Any) -> None:
    default = getattr(kind(**REQUIRED.get(kind, {})), name)
    if not isinstance(default, tuple):
        return
    item = default[0] if default else ("backbone", 1.0)
    many = (item,) * (MAX_ITEMS + 1)
    message = refused(kind, name, many)
    assert message is not None
    assert f"{name} is" in message
    assert refused(kind, name, list(default)) is not None


ATROUS = c.VGGConfig(atrous=True)
WRONG = [
    (c.ResNetConfig, {"depth": 19}, "backbone.depth is 19"),
    (c.ResNetConfig, {"depth": 18, "groups": 32}, r"backbone.groups, .* is \(32, 64\)"),
    (c.ResNetConfig, {"width": 8, "width_per_group": 4}, "backbone.width_per_group is 4"),
    (c.VGGConfig, {"frozen_stages": 6}, "backbone.frozen_stages is 6"),
    (c.RetinaNetConfig, {"backbone": ATROUS}, "model.backbone.atrous is True; .*stride 32"),
    (c.RetinaNetConfig, {"backbone": c.AnchorConfig()}, "model.backbone is AnchorC"),
    (c.RetinaNetConfig, {"levels": (2, 7)}, r"model.levels is \(2, 7\)"),
    (c.RetinaNetConfig, {"head_norm": "group", "channels": 12}, "model.channels is 12"),
    (c.FasterRCNNConfig, {"backbone": ATROUS}, "model.backbone.atrous is True; .*stride 32"),
    (c.FasterRCNNConfig, {"levels": (1, 5)}, r"model.levels is \(1, 5\)"),
    (c.FasterRCNNConfig, {"channels": 12, "fpn_norm": "group"}, "model.channels is 12"),
    (c.RefineDetConfig, {"backbone": ATROUS}, "model.backbone.atrous is True; .*stride 32"),
    (c.SSDConfig, {"backbone": c.ResNetConfig()}, "model.extra_layers is .* 3 layers: with th"),
    (c.MaskHeadConfig, {"channels": 12, "norm": "group"}, "mask_head.channels is 12"),
    (c.RPNConfig, {"num_samples": 0}, "rpn.num_samples is 0"),
    (c.BoxHeadConfig, {"positive_fraction": 0.0}, "box_head.positive_fraction is 0.0"),
    (c.BoxHeadConfig, {"delta_weights": (1.0, 1.0, 0.0, 1.0)}, "box_head.delta_weights is"),
    (c.BoxHeadConfig, {"norm": "batch"}, "box_head.norm is 'batch'; .* two_fc"),
    (c.AnchorConfig, {"scales": (1.0, 1.0)}, "anchors.scales is .*different"),
    (c.AnchorConfig, {"ratios": ()}, "anchors.ratios is .*1 to 16"),
    (c.MatchConfig, {"positive_iou": 0.3}, "match.negative_iou"),
    (c.PostprocessConfig, {"nms": "hard"}, "postprocess.nms is 'hard'; it must be class or agn"),
    (c.PostprocessConfig, {"nms_sigma": 0.0}, "postprocess.nms_sigma is 0.0; it must be a number"),
    (c.DataConfig, {"format": "voc"}, "data.root is None"),
    (c.DataConfig, {"short_sides": (800,), "max_side": 700}, "data.max_side is 700"),
    (c.LossConfig, {"gamma": 1.2}, "loss.gamma is 1.2"),
    (c.LossConfig, {"smooth_l1_beta": 1e-50}, "loss.smooth_l1_beta is 1e-50"),
    (c.LossConfig, {"cls_loss": "isr"}, "cls_loss is 'isr'; .* single samples"),
    (c.LossConfig, {"box_loss": "carl"}, "box_loss is 'carl'; .* single samples"),
    (c.LossConfig, {"correlation": "pearson"}, "correlation is 'pearson'; .* none with"),
    (c.LossConfig, {"factor_gradient": "both"}, "through or stop or cls_only"),
    (c.OptimConfig, {"momentum": 1 - 1e-12}, "optim.momentum is 0.99"),  # 1 in float32
    (c.OptimConfig, {"learning_rate": 1e-50}, "optim.learning_rate is 1e-50"),
    (c.OptimConfig, {"milestones": (0.5, 0.5)}, "optim.milestones is .*increasing"),
    (c.OptimConfig, {"rate_factors": (("a", 1.0), ("a", 0.1))}, "different paths"),
    (c.OptimConfig, {"warmup_images": -1}, "optim.warmup_images is -1"),
    (c.OptimConfig, {"trust_coefficient": 0.0}, "optim.trust_coefficient is 0.0"),
    (c.TrainConfig, {"steps": 9, "profile": (3, 10)}, r"train.profile is \(3, 10\)"),
    (c.Config, {"name": "a/b"}, "config.name is 'a/b'"),
    (c.Config, {"name": ".."}, "config.name is '..'"),
    (c.Config, {"run_dir": ""}, "config.run_dir is ''"),
    (c.Config, {"data": c.AugmentConfig()}, "config.data is .*a DataConfig"),
    (c.Config, {"data": c.DataConfig(stride=16)}, "data.stride is 16"),
    (c.Config, {"optim": c.OptimConfig(accumulate=3)}, "optim.accumulate is 3"),
    (c.Config, {"model": c.SSDConfig(), "loss": c.RIVALS["vfl"]}, "focal with any detect"),
]


@pytest.mark.parametrize(("kind", "values", "words"), WRONG)
def test_what_cannot_work_is_named(kind: type, values: dict[str, Any], words: str) -> None:
    with pytest.raises(c.ConfigError, match=words):
        kind(**REQUIRED.get(kind, {}) | values)


def of_size(side: int, **fields: Any) -> c.Config:
    data = c.DataConfig(short_sides=(side,), max_side=side, resize="warp", stride=4)
    return c.Config("x", data=data, model=c.SSDConfig(**fields))


@pytest.mark.parametrize(("side", "level"), [(32, 5), (64, 5), (128, 5), (192, 6)])
def test_a_size_without_room_for_a_level_is_refused(side: int, level: int) -> None:
    words = rf"model.extra_layers is .* images of {side} x {side} .*short_sides.* level {level}"
    with pytest.raises(c.ConfigError, match=words):
        of_size(side)


def test_the_smallest_size_of_ssd300() -> None:
    assert of_size(260).model.level_shapes((260, 260))[-1] == (1, 1)
    boxes = c.DefaultBoxConfig(sizes=(8, 16, 32), max_ratios=(2, 2), steps=(8, 16))
    of_size(32, extra_layers=(), default_boxes=boxes)


def test_a_text_has_a_length() -> None:
    assert c.DataConfig(root="a" * MAX_TEXT).root
    with pytest.raises(c.ConfigError, match=r"data.root is 'aaa.*\.\."):
        c.DataConfig(root="a" * (MAX_TEXT + 1))
    assert c.DataConfig(root="caf\udce9").root  # bytes of a file's name that are no UTF-8
