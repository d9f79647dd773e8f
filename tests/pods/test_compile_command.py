"""`python -m harmonic_jax compile`: what it refuses, what it says, and the real compiler."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import pytest

from harmonic_jax.cli import compile as command
from harmonic_jax.config import Config
from harmonic_jax.pods import worker
from harmonic_jax.pods.chips import GIB, Slice, parse_slice
from harmonic_jax.pods.hlo import Collective
from harmonic_jax.pods.measure import Measurement, TooBig, abstract_batch, parse_out_of_memory
from harmonic_jax.training.sharding import data_mesh, put_batch
from tests.training.tiny import random_batch, tiny_config

ROOT = Path(__file__).parent.parent.parent
R50 = str(ROOT / "configs" / "retinanet_r50_coco.py")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert command.main(args) == 1
    return capsys.readouterr().err


def test_mistakes_are_named(capsys, monkeypatch) -> None:
    error = refusal(capsys, R50, "--topology", "v5e:32x32")
    assert "'v5e:32x32'; v5e has 2 axes, at most 16x16" in error
    error = refusal(capsys, R50, "--topology", "v5e:16x16")
    assert "train.batch_size is 16; on v5e:16x16 it must be a multiple of 256" in error
    parts = ("--optim.accumulate", "4")
    error = refusal(capsys, R50, "--topology", "v5e:2x2", "--batch-size", "24", *parts)
    assert "24; on v5e:2x2 it must be a multiple of 16: 4 chips x 4 accumulation" in error
    folder = ("--data.format", "coco", "--data.root", "photos")
    error = refusal(capsys, R50, "--topology", "v5e:2x2", *folder)
    assert "--num-classes" in error
    error = refusal(capsys, "nowhere.py", "--topology", "v5e:2x2")
    assert "there is no config file nowhere.py" in error
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    error = refusal(capsys, R50, "--topology", "v5e:2x2")
    assert "pip install 'libtpu==0.0.50.*'" in error


def measured(images: int, **changes: object) -> Measurement:
    """A program whose figures are easy to divide."""
    base = Measurement(
        bucket=(800, 1344),
        images=images,
        seconds=3.0,
        arguments=2 * GIB,
        temporaries=images * GIB,
        code=0,
        total=(2 + images) * GIB,
        flops=images * 1.97e12,
        accessed_bytes=images * 8e9,
        memory_bytes=images * 0.819e9,
        gradient_bytes=144_000_000,
        collectives=(
            Collective("all-reduce", 144_000_000, 4, 1, ("f32",), 80, "jit(train_step)/psum"),
            Collective("all-reduce", 4, 4, 1, ("s32",), 1, "jit(train_step)/psum"),
        ),
    )
    return dataclasses.replace(base, **changes)


def test_the_report(capsys, monkeypatch, tmp_path: Path) -> None:
    asked = []

    def compiled(config: Config, pod: Slice, bucket, *, num_classes: int, fast: bool):
        asked.append((pod.topology, bucket, config.train.batch_size, num_classes, fast))
        return measured(config.train.batch_size // pod.num_chips, bucket=bucket)

    monkeypatch.setattr(command, "compile_remotely", compiled)
    monkeypatch.setattr(command, "check_compiler", lambda: None)
    file = tmp_path / "report.json"
    args = (R50, "--topology", "v5e:2x2", "--json", str(file), "--optim.momentum", "0.5")
    assert command.main(args) == 0
    assert asked == [
        ("v5e:2x2", (800, 1344), 16, 80, False),
        ("v5e:2x2", (1344, 800), 16, 80, False),
        ("v5e:2x2", (800, 1344), 8, 80, False),
    ]
    text = capsys.readouterr().out
    assert "6.00 GiB of 16.00 GiB" in text
    assert "| roofline step            | 40.00 ms (compute) |" in text  # 4 x 1.97 of 197 T
    assert "| all-reduce (f32) | 1 | 80 | 144,000,000 | 216,000,000 | psum |" in text
    report = json.loads(file.read_text())
    assert report["fits"] is True
    bound = report["buckets"][0]["roofline"]
    assert math.isclose(bound["images_per_second"], 400)
    assert math.isclose(bound["interconnect"], 1.5 * 144_000_004 / 90e9)
    rows = report["scaling_fixed_batch"]
    assert [row["work"]["images"] for row in rows] == [4, 1]
    assert math.isclose(rows[1]["roofline"]["compute"], 0.01)


def test_a_config_that_does_not_fit_says_what_helps(capsys, monkeypatch) -> None:
    def refused(config: Config, pod: Slice, bucket, **_: object) -> TooBig:
        images = config.train.batch_size // pod.num_chips
        return TooBig(bucket, images, needed=26 * GIB, available=15 * GIB, state=2 * GIB)

    monkeypatch.setattr(command, "compile_remotely", refused)
    monkeypatch.setattr(command, "check_compiler", lambda: None)
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


def test_the_compiler_s_end_is_an_error_with_its_reason(monkeypatch, tmp_path: Path) -> None:
    """A stand-in for Python that ends as the compiler does."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'F0101 target.cc:1] Check failed: too wide' >&2\nkill -6 $$\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(worker.sys, "executable", str(python))
    with pytest.raises(worker.CompileError, match=r"v5e:2x2 ended with SIGABRT: .*too wide"):
        worker.compile_remotely(Config("x"), parse_slice("v5e:2x2"), (64, 64), num_classes=3)


def test_the_abstract_batch_has_the_shapes_of_a_real_one() -> None:
    mesh = data_mesh(jax.devices()[:1])
    real = put_batch(random_batch(0), mesh)
    abstract = abstract_batch(tiny_config(), (64, 64), mesh)

    def described(tree: object) -> list[tuple]:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return [(jax.tree_util.keystr(path), a.shape, a.dtype, a.sharding) for path, a in paths]

    assert described(abstract) == described(real)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("topology", "dtype"), [("v5e:2x2", "float32"), ("v4:2x2x1", "bfloat16")])
def test_a_small_detector_is_compiled(topology: str, dtype: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "report.json"
    small = (
        *("--data.short-sides", "64", "--data.max-side", "64", "--train.batch-size", "8"),
        *("--model.backbone.width", "8", "--model.channels", "16", "--model.head-convs", "1"),
    )
    config = str(ROOT / "configs" / "retinanet_r18_scenes.py")
    args = (config, "--topology", topology, "--json", str(file), "--fast", *small)
    args += ("--optim.gradient-dtype", dtype)
    assert command.main(args) == 0, capsys.readouterr().err
    report = json.loads(file.read_text())
    assert report["num_chips"] == 4
    (bucket,) = report["buckets"]
    assert 0 < bucket["total"] < report["chip"]["memory"]
    assert bucket["images"] == 2
    assert bucket["flops"] > 0
    gradient = bucket["gradient_bytes"]
    largest = max(c["num_bytes"] for c in bucket["collectives"])
    largest *= 1 if dtype == "float32" else 2
    # Equal gradients, of the norms before and beside a shortcut, are sent once.
    assert 0.99 * gradient <= largest <= 1.01 * gradient
    assert len(report["scaling_fixed_share"]) == 5


@pytest.mark.slow
@needs_libtpu
def test_what_is_far_too_big_is_refused_with_figures(capsys) -> None:
    args = ("--topology", "v5e:1x1", "--batch-size", "32768", "--fast", "--no-scaling")
    config = str(ROOT / "configs" / "retinanet_r18_scenes.py")
    assert command.main((config, *args)) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    assert "--optim.accumulate" in text
