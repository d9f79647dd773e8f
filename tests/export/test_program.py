"""What is exported says what the jitted function says."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.cli import export as command
from harmonic_jax.config import ConfigError, DataConfig
from harmonic_jax.data.resize import resize_image
from harmonic_jax.export import export_stablehlo, on_canvas, on_frames
from harmonic_jax.export.program import resample, resampling_weights
from harmonic_jax.training.state import build_detector
from tests.export.conftest import FrameCase, drawn
from tests.training.tiny import random_batch, tiny_config


def test_a_program_for_frames_and_three_platforms(
    frame_case: FrameCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It finds in a frame what the predict step finds in the frame resized before."""
    pytest.importorskip("flatbuffers", reason="jax.export writes its artefacts with flatbuffers")
    monkeypatch.setattr(command, "open_detector", lambda *_, **__: frame_case.run)
    arguments = ["run", "--to", "stablehlo", "--out", str(tmp_path), "--frame", "128x96"]
    assert command.main([*arguments, "--bucket", "64x64"]) == 2
    assert "--frame or --bucket, not both" in capsys.readouterr().err
    assert command.main(arguments) == 0
    assert "outputs: boxes float32[batch, 20, 4]" in capsys.readouterr().out
    described = json.loads((tmp_path / "detector.json").read_text())
    assert described["inputs"] == {"images": "uint8[batch, 128, 96, 3]"}
    program = jax.export.deserialize((tmp_path / "detector.jax").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    for count in (2, 1):
        found = program.call(frame_case.frames[:count])
        assert found.keys() == frame_case.expected.keys()
        for name, array in found.items():
            # The variables are constants there, and the compiler multiplies some beforehand.
            tolerance = 1e-4 if array.dtype == np.float32 else 0
            expected = frame_case.expected[name][:count]
            np.testing.assert_allclose(array, expected, rtol=tolerance, atol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn", "rtdetr"])
def test_a_program_for_padded_images(name: str) -> None:
    run, batch = drawn(name), random_batch(0, size=2)
    function = on_canvas(run.detector, run.variables, batch_size=2, bucket=(64, 64))
    inputs = (batch.images, batch.image_size, batch.scale)
    exported = export_stablehlo(function, platforms=("cpu",))
    found = exported.call(*inputs)
    expected = jax.jit(function.call)(*inputs)
    assert found["valid"].any()
    assert found.keys() == expected.keys()
    assert ("masks" in found) == (name == "mask_rcnn")
    program = exported.mlir_module()
    assert ("stablehlo.while" in program) == (name != "rtdetr")  # suppression is a loop
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("resizing", ["default", "torchvision"])
@pytest.mark.parametrize(
    ("source", "size"),
    [((48, 60), (64, 80)), ((90, 70), (60, 47)), ((200, 300), (64, 96)), ((64, 64), (64, 64))],
)
def test_frames_are_resized_as_the_loader_does(source, size, resizing) -> None:
    config = DataConfig(resizing=resizing)
    image = np.random.default_rng(0).integers(0, 256, (*source, 3)).astype(np.uint8)
    weights = [resampling_weights(source, size, config, axis=axis) for axis in (0, 1)]
    found = np.asarray(resample(image[None], *weights)[0]).astype(int)
    expected = resize_image(image, size, averages_areas=resizing == "default").astype(int)
    assert found.shape == (*size, 3)
    assert np.abs(found - expected).max() <= 1  # OpenCV's weights have 11 bits
    assert (found == expected).mean() > 0.8


def test_sizes_that_cannot_be() -> None:
    detector = build_detector(tiny_config(), 3)
    nothing: Any = None  # sizes are looked at first
    with pytest.raises(ConfigError, match=r"bucket is \(32, 32\); it must be one of \(\(64, 64\)"):
        on_canvas(detector, nothing, batch_size=1, bucket=(32, 32))
    with pytest.raises(ConfigError, match=r"the frame size is 8 x 640; each side must be >= 16"):
        on_frames(detector, nothing, batch_size=1, height=8, width=640)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys) -> None:
    assert command.main([str(tmp_path), "--to", "stablehlo", "--out", str(tmp_path / "out")]) == 1
    assert "error:" in capsys.readouterr().err
