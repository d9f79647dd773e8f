"""RT-DETR as Hugging Face's `transformers` publishes it: its config.json and names of weights."""

import re
from typing import Any, Literal, cast

import msgspec
import numpy as np

from harmonic_jax.backbones.resnet import LAYOUT
from harmonic_jax.config import DataConfig, ResNetConfig, RTDETRConfig
from harmonic_jax.pretrained.files import WeightsError
from harmonic_jax.pretrained.layout import Layout, Rule, prefixed
from harmonic_jax.pretrained.models import COCO_91, PLACEHOLDER, PublishedDetector

MODEL_TYPES = ("rt_detr_v2", "rt_detr")
COCO_80 = tuple(number for number, name in enumerate(COCO_91) if number and name != PLACEHOLDER)


class _Backbone(msgspec.Struct):
    model_type: str = "rt_detr_resnet"
    embedding_size: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"


class _About(msgspec.Struct):
    """What is read of a config.json, and what is meant where it leaves something out."""

    model_type: Literal[MODEL_TYPES]  # type: ignore[valid-type]
    id2label: dict[int, str] | None = None
    backbone: str | None = None
    backbone_config: _Backbone | None = None
    encoder_hidden_dim: int = 256
    encoder_ffn_dim: int = 1024
    encoder_attention_heads: int = 8
    hidden_expansion: float = 1.0
    d_model: int = 256
    decoder_ffn_dim: int = 1024
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_n_points: int = 4
    num_queries: int = 300


# What this version computes; a model with another value is another model.
_FIXED: dict[str, Any] = {
    "encoder_layers": 1, "encode_proj_layers": [2], "feat_strides": [8, 16, 32],
    "num_feature_levels": 3, "decoder_n_levels": 3, "decoder_offset_scale": 0.5,
    "decoder_method": "default", "positional_encoding_temperature": 10000,
    "encoder_activation_function": "gelu", "activation_function": "silu",
    "decoder_activation_function": "relu", "normalize_before": False, "learn_initial_query": False,
    "layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5,
}  # fmt: skip
_BACKBONE_FIXED: dict[str, Any] = {
    "num_channels": 3, "hidden_act": "relu", "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}  # fmt: skip

_BACKBONE = (
    Rule("stem_convs/{i}", "embedder.embedder.{i}.convolution"),
    Rule("stem_norms/{i}", "embedder.embedder.{i}.normalization"),
    Rule("conv", "embedder.embedder.2.convolution"),
    Rule("norm", "embedder.embedder.2.normalization"),
    Rule("stages/{i}/{j}/convs/{k}", "encoder.stages.{i}.layers.{j}.layer.{k}.convolution"),
    Rule("stages/{i}/{j}/norms/{k}", "encoder.stages.{i}.layers.{j}.layer.{k}.normalization"),
    # Only the first stage's does not pool.
    Rule("stages/0/{j}/shortcut/0", "encoder.stages.0.layers.{j}.shortcut.convolution"),
    Rule("stages/0/{j}/shortcut/1", "encoder.stages.0.layers.{j}.shortcut.normalization"),
    Rule("stages/{i}/{j}/shortcut/0", "encoder.stages.{i}.layers.{j}.shortcut.1.convolution"),
    Rule("stages/{i}/{j}/shortcut/1", "encoder.stages.{i}.layers.{j}.shortcut.1.normalization"),
)


def _conv_norm(ours: str, theirs: str, conv: str = "conv", norm: str = "norm") -> tuple[Rule, ...]:
    return (Rule(f"{ours}/conv", f"{theirs}.{conv}"), Rule(f"{ours}/norm", f"{theirs}.{norm}"))


def _fusion(ours: str, theirs: str) -> tuple[Rule, ...]:
    rules = (
        *_conv_norm("enter", "conv1"),
        *_conv_norm("skip", "conv2"),
        *_conv_norm("leave/0", "conv3"),
        *_conv_norm("blocks/{j}/conv3", "bottlenecks.{j}.conv1"),
        *_conv_norm("blocks/{j}/conv1", "bottlenecks.{j}.conv2"),
    )
    return prefixed(rules, f"{ours}/{{i}}/", f"{theirs}.{{i}}.")


_ATTENTION = (
    Rule("attention/query", "self_attn.q_proj"),
    Rule("attention/key", "self_attn.k_proj"),
    Rule("attention/value", "self_attn.v_proj"),
    Rule("attention/output", "self_attn.out_proj"),
    Rule("attention_norm", "self_attn_layer_norm"),
    Rule("ffn/layers/0", "fc1"),
    Rule("ffn/layers/1", "fc2"),
    Rule("ffn_norm", "final_layer_norm"),
)
_CROSS = (
    Rule("/offsets", ".sampling_offsets"),
    Rule("/weights", ".attention_weights"),
    Rule("/value", ".value_proj"),
    Rule("/output", ".output_proj"),
    Rule("_norm", "_layer_norm"),
)
_RULES = (
    *prefixed(_BACKBONE, "backbone/", "model.backbone.model."),
    *_conv_norm("encoder/inputs/{i}", "model.encoder_input_proj.{i}", "0", "1"),
    *prefixed(_ATTENTION, "encoder/layer/", "model.encoder.encoder.0.layers.0."),
    *_conv_norm("encoder/laterals/{i}", "model.encoder.lateral_convs.{i}"),
    *_fusion("encoder/down", "model.encoder.fpn_blocks"),
    *_conv_norm("encoder/strided/{i}", "model.encoder.downsample_convs.{i}"),
    *_fusion("encoder/up", "model.encoder.pan_blocks"),
    *_conv_norm("memory/{i}", "model.decoder_input_proj.{i}", "0", "1"),
    Rule("cell", "model.enc_output.0"),
    Rule("cell_norm", "model.enc_output.1"),
    Rule("cell_scores", "model.enc_score_head"),
    Rule("cell_boxes/layers/{i}", "model.enc_bbox_head.layers.{i}"),
    Rule("classes/embedding", "model.denoising_class_embed.weight"),
    Rule("places/layers/{i}", "model.decoder.query_pos_head.layers.{i}"),
    *prefixed(_ATTENTION, "layers/{i}/", "model.decoder.layers.{i}."),
    *prefixed(_CROSS, "layers/{i}/cross", "model.decoder.layers.{i}.encoder_attn"),
    Rule("scores/{i}", "model.decoder.class_embed.{i}"),
    Rule("boxes/{i}/layers/{j}", "model.decoder.bbox_embed.{i}.layers.{j}"),
)
# Names of transformers 5, the second names of arrays that are stored twice, and a prefix that
# `read_state_dict` takes off where all names have it.
_RENAMED = (
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.(fc\d)\.", r".\1."),
    (r"encoder\.aifi\.(\d+)\.", r"encoder.encoder.\1."),
    (r"^(class|bbox)_embed\.", r"model.decoder.\1_embed."),
    (r"^(?!model\.)", "model."),
)


def published_name(name: str) -> str:
    """A tensor in a file of any version of transformers -> its name in the published files.

    Example:
        >>> published_name("model.encoder.aifi.0.layers.0.mlp.fc1.weight")
        'model.encoder.encoder.0.layers.0.fc1.weight'
    """
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def rtdetr_layout(config: RTDETRConfig) -> Layout:
    """How transformers writes an RT-DETR with a ResNet-D."""
    shares = np.full(3 * config.num_points, 1 / config.num_points, np.float32)
    name = "model.decoder.layers.{}.encoder_attn.n_points_scale"
    constants = {name.format(i): shares for i in range(config.decoder_layers)}
    return Layout(_RULES, renamed=published_name, constants=constants)


def detector_of(about: Any) -> PublishedDetector:
    """The detector of a config.json whose `model_type` is one of MODEL_TYPES.

    Raises:
        WeightsError: it is of a kind that this version does not compute; the message names the
            field.
        ConfigError: a number in it is not legal.
    """
    try:
        read = msgspec.convert(about, _About, strict=False)
    except msgspec.ValidationError as error:
        raise WeightsError(f"it is no config of an RT-DETR: {error}") from error
    backbone = read.backbone_config or _Backbone()
    fixed = (
        (about, _FIXED, ""),
        (about.get("backbone_config") or {}, _BACKBONE_FIXED, "backbone_config."),
    )
    for values, wanted, where in fixed:
        for field, value in wanted.items():
            if values.get(field, value) != value:
                raise WeightsError(
                    f"{where}{field} is {values[field]}; this version computes {value}"
                )
    if read.backbone or backbone.model_type != "rt_detr_resnet":
        raise WeightsError(
            f"its backbone is {read.backbone or backbone.model_type}; rt_detr_resnet alone is read"
        )
    blocks = (backbone.layer_type == "bottleneck", backbone.depths)
    depths = [depth for depth, layout in LAYOUT.items() if layout == blocks]
    if not depths:
        raise WeightsError(f"backbone_config.depths is {backbone.depths}; no ResNet has them")
    if read.encoder_attention_heads != read.decoder_attention_heads:
        raise WeightsError("its encoder and its decoder differ in the number of attention heads")
    labels = read.id2label or {i: f"LABEL_{i}" for i in range(80)}
    if sorted(labels) != list(range(len(labels))):
        raise WeightsError(f"id2label has {len(labels)} names, and not one for each number below")
    model = RTDETRConfig(
        ResNetConfig(
            cast(Any, depths[0]), backbone.embedding_size, variant="d", normalization="unit"
        ),
        channels=read.encoder_hidden_dim,
        ffn=read.encoder_ffn_dim,
        expansion=read.hidden_expansion,
        decoder_channels=read.d_model,
        decoder_ffn=read.decoder_ffn_dim,
        decoder_layers=read.decoder_layers,
        num_heads=read.decoder_attention_heads,
        num_points=read.decoder_n_points,
        num_queries=read.num_queries,
    )
    data = DataConfig(
        format="coco", root="coco", train_split="train2017", eval_split="val2017",
        short_sides=(640,), max_side=640, resize="warp",
        max_objects=min(100, read.num_queries),
    )  # fmt: skip
    class_names = tuple(labels[i] for i in range(len(labels)))
    ids = COCO_80 if len(labels) == len(COCO_80) else tuple(range(len(labels)))
    return PublishedDetector(model, class_names, ids, data)
