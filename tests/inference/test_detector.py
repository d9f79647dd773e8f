"""A run that is loaded finds what its evaluation finds, and compiles once for a shape."""

import copy
import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import harmonic_jax
from harmonic_jax.config import ConfigError
from harmonic_jax.inference import TTA, ImageDetections, LoadedDetector
from harmonic_jax.inference.detections import detection_table
from harmonic_jax.inference.detector import with_nms
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.evaluation import Evaluation, evaluate
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun, read_run
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Variables
from tests.data.fake_source import FakeSource
from tests.inference.tiny_run import CLASSES, images_of_shapes, run_config, write_run

LOOKS = TTA(scales=(1.5,), merge="wbf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("loaded") / "run", run_config())


@pytest.fixture(scope="module")
def detector(run: Path) -> LoadedDetector:
    return harmonic_jax.load(run, batch_size=2)


def opened(run: Path) -> SavedRun:
    return read_run(RunFolder(run), sharding=replicated(data_mesh(jax.devices()[:1])))


def evaluation(step: Any, variables: Variables, source: FakeSource, saved: SavedRun) -> Evaluation:
    mesh = data_mesh(jax.devices()[:1])
    return evaluate(step, variables, source, saved.config, mesh, track=lambda it, *_: iter(it))


def images_of(source: FakeSource) -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)) for data in source.files]


@pytest.mark.parametrize("tta", [False, True])
def test_finds_what_the_evaluation_finds(run: Path, detector: LoadedDetector, tta: bool) -> None:
    """Whose own loading of images it is; with the programs of `detector`, to save time."""
    source, saved = images_of_shapes(1 if tta else 2), opened(run)
    found = detector(images_of(source), tta=LOOKS if tta else None)
    step: Any = detector._augmented[LOOKS].on_source(source) if tta else detector._predict_step
    expected = evaluation(step, saved.variables, source, saved).detections
    ids = [record.image_id for record in source.records]
    table = detection_table(list(zip(ids, found, strict=True)))
    assert len(table.boxes) > 20
    for column in ("image_id", "labels"):
        np.testing.assert_array_equal(getattr(table, column), getattr(expected, column))
    np.testing.assert_allclose(table.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(table.boxes, expected.boxes, atol=1e-3)
    if tta:  # mirrored and not, by one program
        assert detector._augmented[LOOKS].look._cache_size() == 1


def test_one_compilation_for_each_shape_whatever_comes(
    detector: LoadedDetector, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    landscape, portrait = (rng.integers(0, 256, s, np.uint8) for s in ((30, 41, 3), (200, 99)))
    detector([landscape, portrait, landscape, landscape])
    path = tmp_path / "image.png"
    Image.fromarray(landscape).save(path)
    for image in (path, str(path), Image.open(path), landscape, landscape / 255.0):
        found = detector(image)
        np.testing.assert_allclose(found.boxes, detector(landscape).boxes, atol=1e-3)
    for size in ((1, 1), (500, 20), (3, 400), (64, 64)):
        detector(rng.integers(0, 256, (*size, 3), np.uint8))
    assert detector._predict_step._cache_size() == 2


def test_what_comes_back(detector: LoadedDetector) -> None:
    image = np.full((90, 120, 4), 200, np.uint8)
    found = detector(image)
    assert isinstance(found, ImageDetections)
    assert found.size == (90, 120)
    assert found.masks is None
    assert len(found) == 12
    assert list(found.names) == [CLASSES[label] for label in found.labels]
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= np.array([120, 90, 120, 90]) + 1e-3).all()
    assert found.boxes[:, 2].max() > 64  # pixels of the image, not of the network
    threshold = float(found.scores[3])
    assert len(detector(image, score_threshold=threshold)) == (found.scores >= threshold).sum()
    for value in (float("nan"), -0.1, 2.0):  # of which no score would be above the first
        with pytest.raises(ConfigError, match=r"score_threshold is .* number in \[0, 1\]"):
            detector(image, score_threshold=value)
    assert detector([]) == []
    assert (detector.class_names, detector.category_ids, detector.step) == (CLASSES, (3, 5, 7), 4)


def test_nms_by_choice(run: Path) -> None:
    saved = opened(run)
    assert with_nms(saved, None, None) is saved
    soft = with_nms(saved, "soft_gaussian", 0.3)
    settings = soft.detector.config.model.postprocess
    assert (settings.nms, settings.nms_sigma) == ("soft_gaussian", 0.3)
    assert soft.config == soft.detector.config
    assert dataclasses.replace(settings, nms="class", nms_sigma=0.5) == (
        saved.config.model.postprocess
    )
    with pytest.raises(ConfigError, match="nms is 'hard'"):
        harmonic_jax.load(run, nms="hard")


def test_mistakes(run: Path, detector: LoadedDetector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        harmonic_jax.load(tmp_path)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        harmonic_jax.load(run, batch_size=0)
    with pytest.raises(ConfigError, match=r"the scale 0\.3 does not fit this run"):
        detector(np.zeros((9, 9), np.uint8), tta=TTA(scales=(0.3,)))
    three = [np.zeros((9, 9, 3), np.uint8)] * 3
    with pytest.raises(ValueError, match="2 images at most"):
        detector.detect_batch(three)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("tta", [False, True])
def test_output_that_is_not_finite_is_no_empty_image(
    run: Path, detector: LoadedDetector, tta: bool, value: float
) -> None:
    """Broken weights, or finite ones that grow too large: neither finds nothing in silence."""
    saved = opened(run)
    leaves, structure = jax.tree.flatten(saved.variables)
    broken = structure.unflatten(
        [jax.device_put(np.full(a.shape, value, a.dtype), a.sharding) for a in leaves]
    )
    images = images_of_shapes(1, 3)
    other = copy.copy(detector)  # the same programs
    other._variables = broken
    with pytest.raises(WeightsError, match=r"says NaN or inf for image 1 of 2: .* of step 4, are"):
        other(images_of(images), tta=LOOKS if tta else None)
    if not tta:
        with pytest.raises(WeightsError, match="NaN or inf for 3 of 3 images of fake"):
            evaluation(detector._predict_step, broken, images, saved)


def test_one_image_that_is_not_finite_is_reported(run: Path, detector: LoadedDetector) -> None:
    saved, source = opened(run), images_of_shapes(1, 3)

    def step(variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        found, index = detector._predict_step(variables, batch)
        scores = jnp.where((index == 1)[:, None], jnp.nan, found.scores)
        return dataclasses.replace(found, scores=scores), index

    found = evaluation(step, saved.variables, source, saved)
    ids = [record.image_id for record in source.records]
    assert set(found.detections.image_id) == {ids[0], ids[2]}
    assert found.loaded.count("non_finite_output") == 1
    assert found.loaded.examples("non_finite_output") == (source.records[1].file_name,)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import harmonic_jax; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "assert new <= set(sys.stdlib_module_names) | {'harmonic_jax'}, new; "
        "assert 'load' in dir(harmonic_jax); "
        "assert not hasattr(harmonic_jax, 'loud')"
    )
    root = Path(harmonic_jax.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
