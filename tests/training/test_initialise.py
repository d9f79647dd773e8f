"""Starting from another run: what is taken, what is carried over, what is refused."""

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    Config,
    ConfigError,
    DefaultBoxConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    RetinaNetConfig,
    SSDConfig,
    VGGConfig,
)
from harmonic_jax.training import initialise
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.initialise import start_from
from harmonic_jax.training.loop import train
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import SavedRun
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import Detector, Variables, build_detector
from tests.training.tiny import random_variables, tiny_config

OLD = ("cat", "dog", "N/A", "bird", "N/A")
NEW = ("bird", "fish", "cat")
CARRIED = {0: 3, 2: 0}  # new label: old label

TWO_ANCHORS = dataclasses.replace(
    tiny_config().model, anchors=AnchorConfig(scales=(1.0,), ratios=(1.0, 2.0))
)
SMALL_SSD = SSDConfig(
    backbone=VGGConfig(width=4, norm="batch", atrous=True),
    extra_layers=(),
    default_boxes=DefaultBoxConfig(sizes=(10.0, 20.0, 30.0), max_ratios=(2, 3), steps=(8.0, 16.0)),
)
SMALL_MASK_RCNN = MaskRCNNConfig(
    backbone=ResNetConfig(10, width=8, norm="batch"),
    channels=8,
    box_head=BoxHeadConfig(num_hidden=12, pool_size=3),
    mask_head=MaskHeadConfig(num_convs=1, channels=8, pool_size=4),
)


def experiment(model: Any) -> Config:
    return dataclasses.replace(tiny_config(), model=model)


@functools.cache
def saved_run(model: Any, class_names: tuple[str, ...] = OLD) -> SavedRun:
    config = experiment(model)
    detector = build_detector(config, len(class_names))
    return SavedRun(config, class_names, detector, random_variables(detector, seed=0), 7, {})


def fine_tuned(
    run: SavedRun, class_names: tuple[str, ...], model: Any | None = None
) -> tuple[Any, Variables, Variables, list[str]]:
    detector = build_detector(experiment(model or run.config.model), len(class_names))
    fresh = random_variables(detector, seed=2)
    started, notes = start_from(run, detector, fresh, class_names)
    return detector, fresh, started, notes


def flat(variables: Variables) -> dict[tuple, np.ndarray]:
    return {
        path: np.asarray(leaf[...])
        for part in (variables.params, variables.model_state)
        for path, leaf in nnx.to_flat_state(part)
    }


def test_with_the_same_classes_everything_is_taken() -> None:
    run = saved_run(tiny_config().model)
    _, _, started, notes = fine_tuned(run, OLD)
    assert jax.tree.structure(started) == jax.tree.structure(run.variables)
    for a, b in zip(jax.tree.leaves(started), jax.tree.leaves(run.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert notes == ["starts from step 7 of tiny"]


def test_retinanet_s_rows_lie_anchor_by_anchor() -> None:
    run = saved_run(TWO_ANCHORS)
    _, fresh, started, notes = fine_tuned(run, NEW)
    old, new, initial = flat(run.variables), flat(started), flat(fresh)
    for path, array in new.items():
        if path[:2] != ("cls_head", "output"):
            np.testing.assert_array_equal(array, old[path], err_msg=str(path))
    for name in ("kernel", "bias"):
        path = ("cls_head", "output", name)
        for anchor in range(2):
            for label in range(len(NEW)):
                source, row = initial[path], anchor * len(NEW) + label
                if label in CARRIED:
                    source, row = old[path], anchor * len(OLD) + CARRIED[label]
                np.testing.assert_array_equal(
                    new[path][..., anchor * len(NEW) + label], source[..., row]
                )
    assert "classes carried over: 'bird', 'cat'; new: 'fish'" in notes
    assert "  cls_head/output/kernel: [3, 3, 16, 10] -> [3, 3, 16, 6]" in notes
    assert "  cls_head/output/bias: [10] -> [6]" in notes
    assert len(notes) == 4


def says(model: nnx.Module) -> tuple[jax.Array, ...]:
    """What a detector says of each class, and of background: arrays whose last axis counts them."""
    rng = np.random.default_rng(3)
    if hasattr(model, "box_head"):
        features = jnp.asarray(rng.uniform(0, 1, (5, 3, 3, 8)), jnp.float32)
        logits, deltas = model.box_head(features)
        cells = jnp.asarray(rng.uniform(0, 1, (5, 4, 4, 8)), jnp.float32)
        return logits, jnp.moveaxis(deltas, 1, -1), model.mask_head(cells)
    return model(jnp.asarray(rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8))).cls_logits


@pytest.mark.parametrize("model", [SMALL_SSD, SMALL_MASK_RCNN], ids=["ssd", "mask_rcnn"])
def test_a_class_that_both_know_is_seen_as_before(model: Any) -> None:
    """Through the forward pass: logits, class-wise boxes, masks. RetinaNet's rows are above."""
    run = saved_run(model)
    detector, _, started, _ = fine_tuned(run, NEW)
    before = jax.jit(lambda v: says(run.detector.merge(v, train=False)))(run.variables)
    after = jax.jit(lambda v: says(detector.merge(v, train=False)))(started)
    for old, new in zip(before, after, strict=True):
        assert (old.shape[-1], new.shape[-1]) == (len(OLD) + 1, len(NEW) + 1)
        for label, source in {**CARRIED, len(NEW): len(OLD)}.items():
            np.testing.assert_allclose(new[..., label], old[..., source], rtol=1e-4, atol=1e-6)
        fish = new[..., 1:2]
        assert not np.isclose(fish, old, rtol=1e-3).all(axis=tuple(range(old.ndim - 1))).any()


def test_without_a_common_class_the_layers_are_fresh_background_too() -> None:
    run = saved_run(SMALL_SSD)
    _, fresh, started, notes = fine_tuned(run, ("odd", "even"))
    old, new, initial = flat(run.variables), flat(started), flat(fresh)
    for path, array in new.items():
        is_cls = path[:2] == ("head", "cls")
        np.testing.assert_array_equal(array, (initial if is_cls else old)[path], err_msg=str(path))
    assert "classes carried over: none; new: 'odd', 'even'" in notes


def test_a_layer_may_be_frozen_in_one_run_only() -> None:
    run = saved_run(tiny_config().model)
    backbone = dataclasses.replace(run.config.model.backbone, frozen_stages=3)
    model = dataclasses.replace(run.config.model, backbone=backbone)
    _, fresh, started, notes = fine_tuned(run, OLD, model)
    assert jax.tree.structure(started) == jax.tree.structure(fresh)
    old = flat(run.variables)
    assert all((array == old[path]).all() for path, array in flat(started).items())
    assert len(notes) == 1  # freezing changes no meaning


def test_options_that_change_the_meaning_are_named() -> None:
    run = saved_run(TWO_ANCHORS)
    anchors = dataclasses.replace(TWO_ANCHORS.anchors, rounding="torchvision")
    *_, notes = fine_tuned(run, OLD, dataclasses.replace(TWO_ANCHORS, anchors=anchors))
    assert "note: model.anchors.rounding was 'none' and is 'torchvision'" in notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_convs": 2}, r"box_head/convs/1/bias is missing there"),
        ({"head_convs": 0}, r"box_head/convs/0/bias is only there"),
        ({"channels": 24}, r"box_head/convs/0/bias is \[16\] there and \[24\] here"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, words: str) -> None:
    run = saved_run(tiny_config().model)
    with pytest.raises(ConfigError, match=words) as caught:
        fine_tuned(run, OLD, dataclasses.replace(run.config.model, **changes))
    assert "init names the run tiny" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_run_brings_the_backbone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run(tiny_config().model)
    monkeypatch.setattr(initialise, "open_origin", lambda path, sharding: run)
    backbone = dataclasses.replace(run.config.model.backbone, weights=str(tmp_path / "missing"))
    model = dataclasses.replace(run.config.model, backbone=backbone)
    config = dataclasses.replace(tiny_config(), model=model, init="runs/other")
    state, _ = initialise.start_or_resume(
        build_detector(config, len(OLD)),
        optax.identity(),
        CheckpointStore(tmp_path / "checkpoints"),
        {"class_names": OLD},
        sharding=replicated(data_mesh()),
    )
    started, theirs = flat(state.variables), flat(run.variables)
    assert all(np.array_equal(started[path], theirs[path]) for path in theirs)


def test_mask_rcnn_is_not_trained_without_masks(tmp_path: Path) -> None:
    config = Config(name="blind", model=SMALL_MASK_RCNN)
    source: Any = types.SimpleNamespace(name="source", class_names=("a",))
    with pytest.raises(ConfigError, match=r"data\.masks is False"):
        train(config, RunFolder(tmp_path), source, source)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"<html>", "is a web page"), (b"", "is empty")],
)
def test_a_file_that_is_no_weights_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, words: str
) -> None:
    path = tmp_path / "resnet50.pth"
    if content is not None:
        path.write_bytes(content)
    backbone = ResNetConfig(weights=str(path))
    store = CheckpointStore(tmp_path / "checkpoints")
    monkeypatch.setattr(initialise, "init_variables", None)
    for changes in ({"model": RetinaNetConfig(backbone)}, {"init": str(path)}):
        config = dataclasses.replace(tiny_config(), **changes)
        detector = Detector(None, 3, config)
        with pytest.raises((OSError, ValueError), match=words):
            initialise.start_or_resume(
                detector,
                optax.identity(),
                store,
                {"class_names": NEW},
                sharding=replicated(data_mesh()),
            )
