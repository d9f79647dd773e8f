"""What is exported says what the jitted function says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.cli import export as command
from harmonic_jax.config import Config, ConfigError, DataConfig, FasterRCNNConfig
from harmonic_jax.data.resize import resize_image
from harmonic_jax.export import on_canvas, on_frames
from harmonic_jax.export.program import resample, resampling_weights
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import data_mesh, put_batch, replicated
from harmonic_jax.training.state import Detector, Variables, build_detector, init_variables
from harmonic_jax.training.step import make_predict_step
from tests.detectors.test_two_stage import MODEL as MASK_RCNN
from tests.training.tiny import random_batch, tiny_config

pytest.importorskip("flatbuffers", reason="jax.export writes its artefacts with flatbuffers")


def faster_rcnn() -> Config:
    fields = {f.name: getattr(MASK_RCNN, f.name) for f in dataclasses.fields(FasterRCNNConfig)}
    return dataclasses.replace(tiny_config(), model=FasterRCNNConfig(**fields))


def sensitive(config: Config) -> Config:
    """Untrained scores are low: nothing would be detected, and the test compare nothing."""
    lower = dataclasses.replace(config.model.postprocess, score_threshold=0.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, postprocess=lower))


def untrained(config: Config) -> tuple[Detector, Variables]:
    detector = build_detector(config, 3)
    sharding = replicated(data_mesh(jax.devices()[:1]))
    return detector, init_variables(detector, seed=1, sharding=sharding)


@pytest.mark.parametrize("make", [tiny_config, pytest.param(faster_rcnn, marks=pytest.mark.slow)])
def test_a_program_for_frames_and_three_platforms(make, tmp_path: Path, capsys) -> None:
    """It finds in a frame what the predict step finds in the frame resized before."""
    detector, variables = untrained(sensitive(make()))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(json.dumps(config_to_json(detector.config)))
    with CheckpointStore(run.best, keep=1) as store:
        store.save(40, variables, {"class_names": ["sock", "shoe", "hat"], "AP": 0.25})
    arguments = [str(run.path), "--to", "stablehlo", "--out", str(tmp_path), "--frame", "128x96"]
    assert command.main([*arguments, "--bucket", "64x64"]) == 2
    assert "--frame or --bucket, not both" in capsys.readouterr().err
    assert command.main([*arguments, "--batch-size", "2"]) == 0
    described = json.loads((tmp_path / "detector.json").read_text())
    assert described["inputs"] == {"images": "uint8[2, 128, 96, 3]"}
    program = jax.export.deserialize((tmp_path / "detector.jax").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    frames = np.random.default_rng(1).integers(0, 256, (2, 128, 96, 3)).astype(np.uint8)
    found = program.call(frames)

    data = detector.config.data
    assert data.bucket_of(128, 96) == (64, 64)  # so frames are halved, to 64 x 48
    canvas = np.full((2, 64, 64, 3), (124, 116, 104), np.uint8)
    weights = [resampling_weights((128, 96), (64, 48), data, axis=axis) for axis in (0, 1)]
    canvas[:, :, :48] = resample(frames, *weights)
    batch = dataclasses.replace(
        random_batch(0, size=2),
        images=canvas,
        image_size=np.full((2, 2), (64, 48), np.float32),
        scale=np.full((2, 2), 0.5, np.float32),
    )
    mesh = data_mesh(jax.devices()[:1])
    expected, _ = make_predict_step(detector, mesh)(variables, put_batch(batch, mesh))
    assert found["valid"].any()
    assert found["boxes"][..., 3].max() > 64  # in pixels of the frame, not the network's
    for name, array in found.items():
        # The variables are constants there, and the compiler multiplies some of them beforehand.
        exact = array.dtype != np.float32
        np.testing.assert_allclose(
            array, getattr(expected, name), rtol=0 if exact else 1e-4, atol=0, err_msg=name
        )


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
