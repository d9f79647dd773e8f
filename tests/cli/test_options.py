"""Options, fields on the command line, and config files: one line says what is wrong."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import pytest
from tyro.conf import Positional

from harmonic_jax import config as c
from harmonic_jax.cli import train
from harmonic_jax.cli.configs import config_from_args, list_configs, load_config
from harmonic_jax.cli.options import FLAT, UsageError, given_options, parse_options
from tests.cli.conftest import ROOT

BASE = "mask_rcnn_r50_coco"


def made(line: str) -> c.Config:
    return config_from_args([BASE, *line.split()])


def test_values_of_every_kind() -> None:
    config = made(
        "--name=y --optim.learning-rate 2e-3 --train.batch_size 8 --data.no-masks --loss.no-hardet "
        "--data.short-sides 64 96 --data.root=--x --model.backbone.depth 18 --data.augment.flip=0 "
        "--optim.rate-factors backbone 0.1 rpn 2 --train.profile 2 3 --optim.clip-norm 1 "
        "--model.rpn.anchors.scales 1.5 2 --optim.milestones --train.seed 1 --train.seed 2"
    )
    assert (config.name, config.optim.learning_rate, config.train.batch_size) == ("y", 0.002, 8)
    assert (config.data.masks, config.loss.hardet) == (False, False)
    assert (config.data.short_sides, config.data.root) == ((64, 96), "--x")
    assert (config.model.backbone.depth, config.data.augment.flip) == (18, 0.0)
    assert config.optim.rate_factors == (("backbone", 0.1), ("rpn", 2.0))
    assert (config.train.profile, config.optim.clip_norm) == ((2, 3), 1.0)
    assert isinstance(config.model, c.MaskRCNNConfig)
    assert config.model.rpn.anchors.scales == (1.5, 2.0)
    assert (config.optim.milestones, config.train.seed) == ((), 2)
    again = made("--train.profile None --init=-r")
    assert (again.train.profile, again.init) == (None, "-r")


def test_without_options_a_config_is_as_its_file_says() -> None:
    for name in list_configs():
        assert config_from_args([name]) == load_config(name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--loss.hardet false", "Unrecognized options: false"),
        ("--loss.hardet=true", "Unrecognized options: true"),
        ("--learning-rate 1", "options: --learning-rate, 1; near it: --optim.learning-rate"),
        ("--lr 1", "Unrecognized options: --lr, 1$"),
        ("--model x", "Unrecognized options: --model, x"),
        ("--model.type SSDConfig", "Unrecognized options: --model.type"),
        ("--train.steps", "Missing value for argument '--train.steps'"),
        ("--train.steps 10 20", "Unrecognized options: 20$"),
        ("--train.steps 1e3", "--train.steps: invalid literal for int.*'1e3'$"),
        ("--train.steps " + "9" * 5000, "--train.steps: Exceeds the limit"),
        ("--train.steps -1", r"train.steps is -1; it must be a whole number in \[1, 1e9\]$"),
        ("--optim.learning-rate nan", r"optim.learning_rate is nan; .* in \(0, 1000\]"),
        ("--optim.clip-norm none", "--optim.clip-norm: no type matching {None}|FLOAT .*'none'"),
        ("--model.backbone.depth 19", "'19' for argument '--model.backbone.depth'. Exp.*'10', '18"),
        ("--model.rpn.match.positive-iou 7", "model.rpn.match: match.positive_iou is 7.0; it mus"),
        ("--train.profile 1", r"--train.profile: no type matching {None}\|{INT INT} .*\['1'\]"),
        ("--optim.rate-factors backbone 0.1 rpn", "--optim.rate-factors: Could not find .*'rpn'"),
        ("--data.root=", "data.root is ''"),
        ("--data.stride 4", "^data.stride is 4"),
    ],
)
def test_a_wrong_option_is_named(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        made(line)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: Annotated[float, "[0, 1]"] = 0.5


@dataclasses.dataclass(frozen=True)
class Words:
    """What a command could take."""

    pair: Positional[tuple[int, ...]]
    out: Path
    count: Annotated[int | None, "[1, 9]"] = None
    last: bool = False
    both: tuple[str, ...] = ("x",)
    optim: c.OptimConfig = c.OptimConfig()
    inner: Annotated[Inner, FLAT] = Inner()


def test_options_of_a_command() -> None:
    line = "--last --out=a --both y z --optim.momentum 0.5 --rate 1 --no-last -- 1 2 -3"
    made = parse_options(Words, line.split(), prog="words")
    assert (made.pair, made.out, made.both, made.last) == ((1, 2, -3), Path("a"), ("y", "z"), False)
    assert (made.optim.momentum, made.inner.rate, made.count) == (0.5, 1.0, None)
    assert given_options(made.inner) == ["--rate"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1", "Missing from words: --out PATH"),
        ("1 x --out a", "PAIR.*'x'"),
        ("1 --out a --count 0", r"--count is 0; it must be a whole number in \[1, 9\]"),
        ("1 --out a --rate 2", r"--rate is 2.0; it must be a number in \[0, 1\]"),
        ("1 --out a --rate nan", r"--rate is nan; it must be a number in \[0, 1\]"),
    ],
)
def test_a_wrong_option_of_a_command_is_named(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(Words, line.split(), prog="words")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"def config(:\n", r"bad.py:1: SyntaxError: "),
        (b"def config():\n    return undefined\n", r"bad.py:2: NameError: name 'undefined'"),
        (b"def config():\n    raise ValueError('a\\nb')\n", r"bad.py:2: ValueError: a b"),
        (b"import sys\nsys.exit(3)\n", r"bad.py:2: SystemExit: 3"),
        (b"def config(a):\n    return a\n", r"bad.py: TypeError: config\(\) missing 1 required"),
        (
            b"from harmonic_jax.config import *\ndef config():\n    a = 1\n"
            b"    return Config(name='x', train=TrainConfig(steps=0))\n",
            r"bad.py:4: train.steps is 0; it must be",
        ),
        (b"from harmonic_jax.config import *\nConfig(speed=1)\n", r"bad.py:2: TypeError: .*speed"),
        (b"", r"bad.py must define config\(\) returning"),
        (b"def config():\n    return {'name': 'x'}\n", r"bad.py must define config\(\)"),
        (b"x = 'caf\xe9'\n", r"bad.py.*SyntaxError: .*utf-8"),
        (b"x = '\0'\n", r"bad.py.*: (SyntaxError|ValueError): .*null byte"),
    ],
)
def test_a_config_file_that_fails_names_its_line(tmp_path, source: bytes, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(source)
    with pytest.raises(c.ConfigError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_the_file_is_read_anew(tmp_path) -> None:
    """As an import would not, where size and time are those of the file before."""
    path = tmp_path / "a.py"
    for seed in (1, 2):
        text = "from harmonic_jax.config import *\ndef config():\n"
        path.write_text(f"{text}    return Config('x', train=TrainConfig(seed={seed}))\n")
        os.utime(path, (1e9, 1e9))
        assert load_config(path).train.seed == seed
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["nowhere.py"], 1, "there is no config file nowhere.py"),
        (["configs"], 1, "configs is a folder"),
        (["configs/ssd300_voc.py", "--help-me"], 2, "Unrecognized options: --help-me"),
        (["ssd300_voc", "--coordinator", "h"], 2, "--coordinator is 'h'; it must be HOST:PORT"),
        (["ssd300_vox"], 1, "there is no config 'ssd300_vox'; near it: ssd300_voc"),
        (["--train.steps", "3"], 2, "the config comes first: a name that `harmonic-jax t"),
        (["retinanet_r18_bccd", "--data.root", "/nowhere"], 1, "data.root is '/nowhere'"),
    ],
)
def test_the_command_says_it_in_a_line(
    monkeypatch, capsys, args: list[str], status: int, words: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert train.main(args) == status
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_the_configs_that_come_with_the_package_are_listed(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("retinanet_r50_voc").name == "retinanet_r50_voc"
    assert train.main([]) == 2
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(list_configs())
    assert len(lines) > 20
    assert all(len(line) < 150 for line in lines)
    assert "retinanet_r18_scenes         RetinaNet on a narrow ResNet-18 for" in "\n".join(lines)


@pytest.mark.parametrize("args", [["--help"], ["configs/ssd300_voc.py", "-h"]])
def test_help_lists_the_fields(args: list[str], monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit:
        train.main(args)
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: harmonic-jax train {'CONFIG' if len(args) == 1 else args[0]}" in shown
    assert "--optim.learning-rate" in shown
    assert "--process-id" in shown
    assert ("--model.default-boxes.sizes" in shown) == (len(args) == 2)
