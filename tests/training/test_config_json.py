"""Stored configs: what is no config is refused at once, by its file and the place in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from harmonic_jax.config import Config, ConfigError, FasterRCNNConfig, MaskRCNNConfig
from harmonic_jax.training.config_json import config_from_json, config_to_json
from harmonic_jax.training.run_folder import RunFolder
from tests.training.test_step_folders import put


def changed(path: str, value: Any) -> dict[str, Any]:
    """The JSON of a config with another value at a path."""
    values = config_to_json(Config("x", model=MaskRCNNConfig()))
    put(*path.split("."), value=value)(values)
    return values


@pytest.mark.parametrize("values", [[], None, 3, "Config", True, [{}], [["type", "Config"]]])
def test_what_is_no_object(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config is .*; it must be an object"):
        config_from_json(values)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("type", "os", r"config.type is 'os'; it must be Config"),
        ("model.type", "TrainConfig", r"config.model.type is 'TrainConfig'"),
        ("data.type", None, r"config.data.type is None; it must be DataConfig"),
        ("data.augment", [], r"config.data.augment is \[\]; .* of the type AugmentConfig"),
        ("optim.speed", 1, r"config.optim has unknown fields \['speed'\] for OptimConfig"),
        (
            "train.steps",
            {"type": "TrainConfig"},
            r"^train.steps is {'type': 'TrainConfig'}; .* who",
        ),
        ("train.steps", True, r"^train.steps is True; it must be a whole number"),
        ("train.steps", 2**40, r"^train.steps is 1099511627776"),
        ("optim.learning_rate", 10**400, r"^optim.learning_rate is 10+\.\."),
        ("optim.milestones", 0.5, r"^optim.milestones is 0.5; it must be a tuple"),
        ("optim.milestones", [[0.5]], r"^optim.milestones is \(\(0.5,\),\)"),
        ("model.postprocess.nms", 1, r"^model.postprocess.nms is 1; it must be class or"),
        ("model.mask_head.num_convs", 10_000, r"^model.mask_head.num_convs is 10000; .* \[0, 16\]"),
        ("data.root", "\ud800", r"^data.root is '\\ud800'; it must be a text"),
        ("name", "../../etc", r"config.name is '../../etc'"),
    ],
)
def test_the_place_is_named(path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_json(changed(path, value))
    with pytest.raises(ConfigError, match=r"^here: "):
        config_from_json(changed(path, value), where="here: ")


def test_a_missing_field_without_a_default_is_named() -> None:
    values = changed("train.steps", 7)
    del values["name"]
    with pytest.raises(ConfigError, match=r"^config.name is missing"):
        config_from_json(values)


def test_a_detector_stays_of_its_family() -> None:
    made = config_from_json(changed("train.steps", 7))
    assert type(made.model) is MaskRCNNConfig
    values = config_to_json(Config("x", model=FasterRCNNConfig()))
    assert type(config_from_json(values).model) is FasterRCNNConfig


GOOD = json.dumps(config_to_json(Config("x"))).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is not JSON: it is empty"),
        (GOOD[:-5], "is not JSON: it ends early"),
        (GOOD.replace(b'"x"', b'"\xff"'), "can't decode byte"),
        (b"null", "config is None"),
        (b'{"type": "Config", "name": ' + b"[" * 900 + b"]" * 900 + b"}", "config.name is"),
        (GOOD.replace(b'"name"', b'"name": "y", "name"', 1), "'name' is there twice in one object"),
        (GOOD.replace(b'"steps": 90000', b'"steps": NaN'), "train.steps is nan"),
        (GOOD + b" " * 2**24, "its size is"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, raw: bytes, words: str) -> None:
    run_dir = RunFolder(tmp_path)
    run_dir.config.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        run_dir.read_config()
    assert str(caught.value).startswith(str(run_dir.config))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert RunFolder(tmp_path).read_config() == Config("x")


def test_a_config_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        RunFolder(tmp_path).read_config()
