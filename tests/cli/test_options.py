"""Options, fields on the command line, and config files: one line says what is wrong."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import pytest
from tyro.conf import Positional

from harmonic_jax import config as c
from harmonic_jax.cli import train
from harmonic_jax.cli.configs import list_configs, load_config, replace_fields
from harmonic_jax.cli.options import FLAT, UsageError, given_options, parse_options
from tests.cli.conftest import ROOT

BASE = c.Config("x", model=c.MaskRCNNConfig(), data=c.DataConfig(masks=True))


def test_values_of_every_kind() -> None:
    line = (
        "--name=y --optim.learning-rate 2e-3 --train.batch_size 8 --data.no-masks --loss.no-hardet "
        "--data.short-sides 64 96 --data.root=--x --model.backbone.depth 18 --data.augment.flip=0 "
        "--optim.rate-factors backbone 0.1 rpn 2 --train.profile 2 3 --optim.clip-norm 1 "
        "--model.rpn.anchors.scales=1.5 2 --optim.milestones --train.seed 1 --train.seed 2"
    )
    made = replace_fields(BASE, line.split())
    assert (made.name, made.optim.learning_rate, made.train.batch_size) == ("y", 0.002, 8)
    assert (made.data.masks, made.loss.hardet, made.data.short_sides) == (False, False, (64, 96))
    assert (made.data.root, made.model.backbone.depth, made.data.augment.flip) == ("--x", 18, 0.0)
    assert made.optim.rate_factors == (("backbone", 0.1), ("rpn", 2.0))
    assert (made.train.profile, made.optim.clip_norm) == ((2, 3), 1.0)
    assert isinstance(made.model, c.MaskRCNNConfig)
    assert made.model.rpn.anchors.scales == (1.5, 2.0)
    assert (made.optim.milestones, made.train.seed) == ((), 2)
    again = replace_fields(made, ["--data.root", "None", "--train.profile", "None", "--init", "-r"])
    assert (again.data.root, again.train.profile, again.init) == (None, None, "-r")
    assert replace_fields(BASE, []) == BASE


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--loss.hardet false", "--loss.hardet takes no value, and 'false' is given; .*no-hardet"),
        ("--loss.hardet=true", "--loss.hardet takes no value, and 'true'"),
        ("--loss.no-hardet 1", "--loss.no-hardet takes no value, and '1'"),
        ("--data.masks=", "--data.masks takes no value, and ''"),
        ("--learning-rate 1", "no option --learning-rate; near it: --optim.learning-rate"),
        ("--optim.learningrate 1", "no option --optim.learningrate; near it: --optim.learning-ra"),
        ("--lr 1", "no option --lr; --help lists all"),
        ("--model x", "there is no option --model"),
        ("--data", "there is no option --data"),
        ("--model.type SSDConfig", "there is no option --model.type"),
        ("-x", "there is no option -x"),
        ("--train.steps", "--train.steps needs a value: a whole number"),
        ("--train.steps --train.seed 1", "--train.steps needs a value"),
        ("--data.root --train.seed 1", "--data.root needs a value: a text"),
        ("--train.steps 10 20", "'20' belongs to no option"),
        ("--train.steps 10 a/b.py", "'a/b.py' belongs to no option, the config comes first"),
        ("--train.steps 1e3", "train.steps is '1e3'; it must be a whole number"),
        ("--train.steps ten", "train.steps is 'ten'; it must be a whole number"),
        ("--train.steps=", "train.steps is ''; it must be a whole number"),
        ("--train.steps " + "9" * 5000, r"train.steps is '99.*\.\.; it must be a whole number"),
        ("--train.steps -1", r"train.steps is -1; it must be a whole number in \[1, 1e9\]"),
        ("--optim.learning-rate nan", r"optim.learning_rate is nan; .* in \(0, 1000\]"),
        ("--optim.clip-norm none", "optim.clip_norm is 'none'; it must be a number or None"),
        ("--model.backbone.depth 19", "model.backbone.depth is '19'; it must be 10 or 18"),
        ("--model.rpn.match.positive-iou 7", "^model.rpn.match.positive_iou is 7.0"),
        ("--model.rpn.nms-iou=-inf", "^model.rpn.nms_iou is -inf"),
        ("--train.profile 1", r"train.profile is '1'; it must be a tuple \(a whole number, a "),
        ("--train.profile 1 2 3", "train.profile is '1 2 3'"),
        ("--optim.rate-factors backbone 0.1 rpn", "optim.rate_factors is 'backbone 0.1 rpn'"),
        ("--data.short-sides", r"data.short_sides is \(\)"),
        ("--data.root=", "data.root is ''"),
        ("--data.stride 4", "data.stride is 4"),
    ],
)
def test_a_wrong_option_is_named(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        replace_fields(BASE, line.split())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@dataclasses.dataclass(frozen=True)
class Words:
    """What a command could take."""

    pair: Positional[tuple[int, ...]]
    out: Path
    ratio: Annotated[float | None, "[0, 1]"] = None
    last: bool = False
    both: tuple[str, ...] = ("x",)
    optim: c.OptimConfig = c.OptimConfig()
    train: Annotated[c.TrainConfig, FLAT] = c.TrainConfig()


def test_options_of_a_command() -> None:
    line = "1 --last 2 --out=a --both y z --optim.momentum 0.5 --steps 7 --no-last -- -3"
    made = parse_options(Words, line.split(), prog="words")
    assert (made.pair, made.out, made.both, made.last) == ((1, 2, -3), Path("a"), ("y", "z"), False)
    assert (made.optim.momentum, made.train.steps, made.ratio) == (0.5, 7, None)
    assert given_options(made.train) == ["--steps"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "PAIR and --out must be given"),
        ("1", "^--out must be given"),
        ("1 --out", "--out needs a value"),
        ("1 x --out a", "PAIR is '1 x'; it must be a tuple .* whole number"),
        ("1 --out a --ratio 2", r"--ratio is 2.0; it must be a number in \[0, 1\]"),
        ("1 --out a --ratio nan", r"--ratio is nan; it must be a number in \[0, 1\]"),
        ("1 --out a --steps 0", "train.steps is 0"),
        ("1 --out a --stepps 1", "no option --stepps; near it: --steps"),
        ("1 --out a --last=yes", "--last takes no value, .* it must be --last or --no-last"),
        ("-1 --out a", "there is no option -1"),
    ],
)
def test_a_wrong_option_of_a_command_is_named(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options(Words, line.split(), prog="words")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"def config(:\n", r"bad.py:1: SyntaxError: "),
        (b"x = 1\n  y = 2\n", r"bad.py:2: IndentationError: unexpected indent"),
        (b"\n\nimport nowhere_at_all\n", r"bad.py:3: ModuleNotFoundError: No module named"),
        (b"def config():\n    return undefined\n", r"bad.py:2: NameError: name 'undefined'"),
        (b"def config():\n    raise KeyError('a\\nb')\n", r"bad.py:2: KeyError: 'a\\nb'"),
        (b"def config():\n    raise ValueError('a\\nb')\n", r"bad.py:2: ValueError: a b"),
        (b"def config():\n    return config()\n", r"bad.py:2: RecursionError"),
        (b"import sys\nsys.exit(3)\n", r"bad.py:2: SystemExit: 3"),
        (b"assert False\n", r"bad.py:1: AssertionError"),
        (b"def config(a):\n    return a\n", r"bad.py: TypeError: config\(\) missing 1 required"),
        (
            b"from harmonic_jax.config import *\ndef config():\n    a = 1\n"
            b"    return Config(name='x', train=TrainConfig(steps=0))\n",
            r"bad.py:4: train.steps is 0; it must be",
        ),
        (b"from harmonic_jax.config import *\nConfig(speed=1)\n", r"bad.py:2: TypeError: .*speed"),
        (b"", r"bad.py must define config\(\) returning"),
        (b"config = 3\n", r"bad.py must define config\(\)"),
        (b"def config():\n    return {'name': 'x'}\n", r"bad.py must define config\(\)"),
        (b"x = 'caf\xe9'\n", r"bad.py.*SyntaxError: .*utf-8"),
        (b"\xff\xfex\0", r"bad.py.*: (SyntaxError|ValueError): "),
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
        (["README.md"], 1, "README.md:3: SyntaxError"),
        (["configs/ssd300_voc.py", "--help-me"], 2, "there is no option --help-me"),
        (["ssd300_voc", "--loss.hardet", "false"], 2, "--loss.hardet takes no value"),
        (["ssd300_voc", "--train.batch-size", "1000000000"], 2, "train.batch_size is 1000000000"),
        (
            ["ssd300_voc", "--num-processes", "two"],
            2,
            "--num-processes is 'two'; it must be a whole",
        ),
        (["ssd300_voc", "--coordinator", "h"], 2, "--coordinator is 'h'; it must be HOST:PORT"),
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


def test_the_configs_that_come_with_the_package_are_listed(capsys) -> None:
    assert train.main([]) == 2
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(list_configs())
    assert len(lines) > 20
    assert all(len(line) < 150 for line in lines)
    assert "retinanet_r18_scenes         RetinaNet on a narrow ResNet-18 for" in "\n".join(lines)


def test_a_name_is_a_config_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("retinanet_r50_voc").name == "retinanet_r50_voc"
    with pytest.raises(c.ConfigError, match="there is no config 'zebra'; `harmonic-jax train`"):
        load_config("zebra")


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
