"""Every config file is legal, and a wrong value is refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest

from harmonic_jax import config as c
from harmonic_jax.cli.configs import config_from_args, load_config
from harmonic_jax.training.config_json import config_from_json, config_to_json, differences

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files(path: Path) -> None:
    made = load_config(path)
    assert made.name == path.stem
    text = path.read_text()
    assert "Paper row:" in text or "Not a row of the paper" in text
    assert "Expected:" in text
    assert "Cost:" in text
    assert f"configs/{path.name}" in text or "python train.py\n" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_json_round_trip(path: Path) -> None:
    made = load_config(path)
    assert config_from_json(json.loads(json.dumps(config_to_json(made)))) == made


def test_the_1x_recipe_of_the_paper() -> None:
    path = next(path for path in CONFIGS if path.stem == "retinanet_r50_coco")
    made = load_config(path)
    assert (made.train.batch_size, made.train.steps) == (16, 90_000)
    assert made.optim.learning_rate == 0.01
    assert [round(m * made.train.steps) for m in made.optim.milestones] == [60_000, 80_000]
    assert (made.data.short_sides, made.data.max_side) == ((800,), 1333)
    assert made.data.buckets == ((800, 1344), (1344, 800))
    assert (made.loss.focal_alpha, made.loss.focal_gamma) == (0.25, 2.0)
    assert made.model.prior == 0.01
    assert made.model.anchors.per_location == 9
    assert made.model.levels == (3, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: c.ResNetConfig(depth=19), "backbone.depth is 19"),  # type: ignore[arg-type]
        (lambda: c.DataConfig(format="voc"), "data.root is None"),
        (lambda: c.DataConfig(short_sides=(800,), max_side=700), "data.max_side is 700"),
        (lambda: c.MatchConfig(positive_iou=0.3), "match.negative_iou"),
        (lambda: c.LossConfig(gamma=1.2), "loss.gamma is 1.2"),
        (
            lambda: c.LossConfig(cls_loss="varifocal"),
            "cls_loss is 'varifocal'; .* focal with hardet",
        ),
        (lambda: c.LossConfig(box_loss="carl"), "box_loss is 'carl'; .* single samples"),
        (lambda: c.LossConfig(correlation="pearson"), "correlation is 'pearson'; .* none with"),
        (lambda: c.LossConfig(correlation_weight=-1.0), "loss.correlation_weight is -1.0"),
        (lambda: c.Config("x", model=c.SSDConfig(), loss=c.RIVALS["vfl"]), "focal with any detect"),
        (lambda: c.LossConfig(factor_gradient="both"), "through or stop or cls_only"),  # type: ignore[arg-type]
        (lambda: c.OptimConfig(milestones=(0.9, 0.5)), "optim.milestones"),
        (lambda: c.OptimConfig(optimizer="lion"), "sgd or adamw or lars or lamb"),  # type: ignore[arg-type]
        (lambda: c.OptimConfig(reference_batch_size=0), "optim.reference_batch_size is 0"),
        (lambda: c.OptimConfig(warmup_images=-1), "optim.warmup_images is -1"),
        (lambda: c.OptimConfig(trust_coefficient=0.0), "optim.trust_coefficient is 0.0"),
        (lambda: c.TrainConfig(steps=0), "train.steps is 0"),
        (lambda: c.Config("x", data=c.DataConfig(stride=16)), "data.stride is 16"),
        (lambda: c.Config("x", optim=c.OptimConfig(accumulate=3)), "optim.accumulate is 3"),
        (lambda: c.RetinaNetConfig(levels=(2, 7)), r"model.levels is \(2, 7\)"),
    ],
)
def test_a_wrong_value_is_named(make, words: str) -> None:
    with pytest.raises(c.ConfigError, match=words):
        make()


def test_the_command_line_replaces_single_fields() -> None:
    made = config_from_args(
        [str(CONFIGS[0]), "--optim.learning-rate", "0.02", "--loss.no-hardet",
         "--data.short-sides", "96", "128"]
    )  # fmt: skip
    assert made.optim.learning_rate == 0.02
    assert made.loss.hardet is False
    assert made.data.short_sides == (96, 128)
    assert made.model == load_config(CONFIGS[0]).model


def test_the_command_line_chooses_the_losses_of_a_rival() -> None:
    args = "--loss.no-hardet --loss.cls-loss quality_focal --loss.box-loss giou --loss.box-weight 2"
    path = next(path for path in CONFIGS if path.stem == "retinanet_r18_scenes")
    made = config_from_args([str(path), *args.split()])
    assert made.loss == c.RIVALS["gfl"]


def test_a_config_stored_before_a_field_existed_has_its_default() -> None:
    values = config_to_json(c.Config("x"))
    for field in ("cls_loss", "correlation", "correlation_weight"):
        del values["loss"][field]
    assert config_from_json(values) == c.Config("x")


def test_the_command_line_names_a_config_file() -> None:
    path = next(path for path in CONFIGS if path.stem == "retinanet_r50_voc")
    args = [str(path), "--train.seed", "7"]
    made = config_from_args(args)
    assert made.name == "retinanet_r50_voc"
    assert made.train.seed == 7
    with pytest.raises(c.ConfigError, match=r"there is no config file nowhere\.py"):
        config_from_args(["nowhere.py"])


def test_differences_leave_out_what_cannot_change_the_outcome() -> None:
    made = load_config(CONFIGS[0])
    train = dataclasses.replace(made.train, log_every=7, seed=made.train.seed + 1)
    other = dataclasses.replace(made, train=train, run_dir="elsewhere")
    assert differences(made, other) == {"train.seed": (made.train.seed, made.train.seed + 1)}


def test_a_stored_config_names_what_it_cannot_read() -> None:
    values = config_to_json(load_config(CONFIGS[0]))
    with pytest.raises(c.ConfigError, match=r"config.optim has unknown fields \['speed'\]"):
        config_from_json(values | {"optim": values["optim"] | {"speed": 3}})
    with pytest.raises(c.ConfigError, match=r"config.type is 'os'"):
        config_from_json(values | {"type": "os"})
