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
