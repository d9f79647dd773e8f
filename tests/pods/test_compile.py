"""`compile`: what it refuses, what it says, and the real compiler."""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from harmonic_jax.cli import compile as command
from harmonic_jax.config import Config
from harmonic_jax.pods import compilation
from harmonic_jax.pods.collectives import Collective
from harmonic_jax.pods.compilation import (
    Compiled,
    Slice,
    TooBig,
    parse_out_of_memory,
    parse_slice,
    result_of,
)

ROOT = Path(__file__).parent.parent.parent
R18 = str(ROOT / "configs" / "retinanet_r18_scenes.py")
RTDETR = str(ROOT / "configs" / "rtdetr_r18_finetune.py")
R50 = str(ROOT / "configs" / "retinanet_r50_coco.py")
GIB = 2**30
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((R50, "--topology", "v5e:32x32"), "'v5e:32x32'; it must be .* v5e:16x16"),
        ((R50, "--topology", "v5e:16x16"), r"train.batch_size is 16; .* must be a multiple of 256"),
        (
            (R50, "--topology=v5e:2x2", "--batch-size", "24", "--optim.accumulate", "4"),
            "24; on v5e:2x2 it must be a multiple of 16: 4 chips x 4 accumulation",
        ),
        (
            (R50, "--topology=v5e:2x2", "--data.format", "coco", "--data.root", "photos"),
            "--num-classes",
        ),
        (("nowhere.py", "--topology", "v5e:2x2"), "there is no config file nowhere.py"),
        ((R50, "--topology", "v5e:2x2"), r"pip install 'libtpu==0\.0\.50\.\*'"),
    ],
)
def test_mistakes_are_named(args, words, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(args) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error


@pytest.mark.parametrize(
    "name", ["v5e:32x32", "v5e:2x2x2", "v4:2x2", "v5e:3x4", "v5e:0x4", "v7:2x2", "nonsense", "v4:x"]
)
def test_slices_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"topology is '{name}'; .*v4:16x16x16, .*, v6e:16x16"):
        parse_slice(name)


def test_slices() -> None:
    pod = parse_slice("v5p:24x16x2", num_slices=2)
    assert (pod.num_chips, pod.name) == (1536, "2 x v5p:24x16x2")
    assert parse_slice("v4:1x1x1").num_chips == 1


def compiled(images: int, bucket: tuple[int, int]) -> Compiled:
    """A program whose figures are easy to divide."""
    return Compiled(
        bucket=bucket,
        images=images,
        seconds=3.0,
        arguments=2 * GIB,
        temporaries=images * GIB,
        code=0,
        total=(2 + images) * GIB,
        flops=images * 1.5e12,
        gradient_bytes=144_000_000,
        collectives=(
            Collective("all-reduce", 144_000_000, 4, 1, ("f32",), 80, "jit(train_step)/psum"),
            Collective("all-reduce", 4, 4, 2, ("s32",), 1, "jit(train_step)/a/jvp()/psum"),
            Collective("all-gather", 400, 4, 1, ("f32",), 1, ""),
        ),
    )


def test_the_report(capsys, monkeypatch, tmp_path: Path) -> None:
    asked = []

    def answer(config: Config, pod: Slice, bucket, *, num_classes: int, fast: bool) -> Compiled:
        asked.append((pod.topology, bucket, config.train.batch_size, num_classes, fast))
        return compiled(config.train.batch_size // pod.num_chips, bucket)

    monkeypatch.setattr(command, "compile_for_slice", answer)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    file = tmp_path / "report.json"
    args = (R50, "--topology", "v5e:2x2", "--json", str(file), "--optim.momentum", "0.5")
    assert command.main(args) == 0
    assert asked == [
        ("v5e:2x2", (800, 1344), 16, 80, False),
        ("v5e:2x2", (1344, 800), 16, 80, False),
    ]
    text = capsys.readouterr().out
    assert "| memory a chip | 6.00 GiB of 16.00 GiB |" in text
    assert "| FLOPs a chip | 6,000.0 G (1,500.0 G an image) |" in text
    assert "| all-reduce (f32) | 1 | 80 | 144,000,000 | 216,000,000 | psum |" in text
    assert "| all-reduce (s32) | 2 | 1 | 4 | 6 | jvp()/psum |" in text
    assert "| all | 4 |  | 144,000,408 | 216,000,312 |  |" in text
    assert "| 1024 | 4,096 | 0.288 GB |" in text
    report = json.loads(file.read_text())
    assert report["fits"] is True
    assert report["config"]["optim"]["momentum"] == 0.5
    assert [row["num_chips"] for row in report["scaling"]] == [4, 16, 64, 256, 1024]
    sent = report["scaling"][1]["sent_bytes"]
    assert math.isclose(sent, 2 * 15 / 16 * 144_000_008 + 3 / 4 * 400)


def test_one_chip_s_program_sends_nothing_but_more_chips_would(monkeypatch, capsys) -> None:
    alone = dataclasses.replace(compiled(16, (800, 1344)), collectives=())
    monkeypatch.setattr(command, "compile_for_slice", lambda *args, **options: alone)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    assert command.main((R50, "--topology", "v5e:1x1")) == 0
    text = capsys.readouterr().out
    assert "no collectives" in text
    assert "| 4 | 64 | 0.216 GB |" in text


def test_a_config_that_does_not_fit_says_what_helps(capsys, monkeypatch) -> None:
    def refused(config: Config, pod: Slice, bucket, **_: object) -> TooBig:
        images = config.train.batch_size // pod.num_chips
        return TooBig(bucket, images, needed=26 * GIB, available=15 * GIB, state=2 * GIB)

    monkeypatch.setattr(command, "compile_for_slice", refused)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    args = (R50, "--topology", "v5e:4x4", "--batch-size", "128", "--train.precision", "float32")
    assert command.main(args) == 1
    text = capsys.readouterr().out
    assert "would need 26.00 GiB and has 15.00 GiB for programs: 11.00 GiB too much" in text
    # 24 GiB are 8 images' activations: room for 13 GiB is room for 4.
    assert "--optim.accumulate 2: 4 images a chip at once" in text
    assert "--batch-size 64: 4 images a chip" in text
    assert "32 chips for the same batch: 4 images a chip" in text
    assert "--train.precision bfloat16" in text
    assert "--data.short-sides 576 --data.max-side 959" in text  # 800 sqrt(13 / 24), in strides
    assert "a chip with more memory: v4, v5p, v6e" in text


def test_both_wordings_of_a_refusal() -> None:
    """The second names temporaries alone."""
    head = "RESOURCE_EXHAUSTED: Ran out of memory "
    first = head + "in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    assert parse_out_of_memory(first, arguments=GIB) == (20.5 * GIB, 15.75 * GIB)
    second = (
        f"{head}on HBM, the total memory required for HLO temporaries (48.50G) exceeds available "
        "HBM (15.75G). HLO module: jit_train_step."
    )
    assert parse_out_of_memory(second, arguments=GIB) == (49.5 * GIB, 15.75 * GIB)
    assert parse_out_of_memory("INVALID_ARGUMENT: Used 2G of 1G hbm", arguments=0) is None


@pytest.mark.parametrize("result", [compiled(4, (64, 96)), TooBig((64, 96), 4, 3, 2, 1)])
def test_results_travel_between_processes(result: Compiled | TooBig) -> None:
    assert result_of(json.loads(json.dumps(dataclasses.asdict(result)))) == result


def test_the_compiler_s_end_is_an_error_with_its_reason(monkeypatch, tmp_path: Path) -> None:
    """A stand-in for Python that ends as the compiler does."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'F0101 target.cc:1] Check failed: too wide' >&2\nkill -6 $$\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(compilation.sys, "executable", str(python))
    with pytest.raises(compilation.CompileError, match=r"v5e:2x2 ended with SIGABRT: .*too wide"):
        compilation.compile_for_slice(Config("x"), parse_slice("v5e:2x2"), (64, 64), num_classes=3)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("config", "topology", "dtype"),
    [
        (R18, "v5e:2x2", "float32"),
        (R18, "v4:2x2x1", "bfloat16"),
        (RTDETR, "v5e:2x2", "float32"),
    ],
)
def test_a_small_detector_is_compiled(
    config: str, topology: str, dtype: str, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "report.json"
    small: tuple[str, ...] = ("--model.head-convs", "1")
    if config == RTDETR:
        small = ("--num-classes", "3", "--model.decoder-channels", "16", "--model.ffn", "16")
    args = (
        *(config, "--topology", topology, "--json", str(file), "--fast", *small),
        *("--data.short-sides", "64", "--data.max-side", "64", "--train.batch-size", "8"),
        *("--model.backbone.width", "8", "--model.channels", "16", "--optim.gradient-dtype", dtype),
    )
    assert command.main(args) == 0, capsys.readouterr().err
    report = json.loads(file.read_text())
    assert report["num_chips"] == 4
    (bucket,) = report["buckets"]
    assert 0 < bucket["total"] < 16 * GIB
    assert bucket["images"] == 2
    assert bucket["flops"] > 0
    sizes = [c["num_bytes"] for c in bucket["collectives"]]
    sent = sum(size for size in sizes if size > 0.1 * max(sizes))  # of many arrays in two
    sent *= 1 if dtype == "float32" else 2
    # Equal gradients, of the norms before and beside a shortcut, are sent once.
    assert 0.99 * bucket["gradient_bytes"] <= sent <= 1.01 * bucket["gradient_bytes"]


@pytest.mark.slow
@needs_libtpu
def test_what_is_far_too_big_is_refused_with_figures(capsys) -> None:
    args = (R18, "--topology", "v5e:1x1", "--batch-size", "32768", "--fast")
    assert command.main(args) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    assert "--optim.accumulate" in text
