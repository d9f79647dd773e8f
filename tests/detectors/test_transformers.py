"""RT-DETR against Hugging Face's transformers: every map and layer, losses, files both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax import detectors
from harmonic_jax.__main__ import main
from harmonic_jax.detectors.parts.queries import to_corners
from harmonic_jax.detectors.rtdetr import loss_sums
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.pretrained.transformers import detector_of
from harmonic_jax.structures import Batch, GroundTruth
from harmonic_jax.training.saved_run import open_detector
from harmonic_jax.training.sharding import data_mesh, replicated

K, SHAPE = 5, (128, 160)
BLOCKS = {"basic": (16, [16, 32, 64, 128], 10), "bottleneck": (16, [64, 128, 256, 512], 50)}


def small_model(kind: str, layer_type: str) -> Any:
    """transformers' class, small, with random weights and statistics."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    width, sizes, depth = BLOCKS[layer_type]
    names = {"rt_detr_v2": "RTDetrV2", "rt_detr": "RTDetr"}
    config = getattr(transformers, f"{names[kind]}Config")(
        backbone_config={
            "model_type": "rt_detr_resnet", "embedding_size": width, "hidden_sizes": sizes,
            "depths": [1, 1, 1, 1] if depth == 10 else [3, 4, 6, 3], "layer_type": layer_type,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        encoder_in_channels=sizes[1:], encoder_hidden_dim=32, encoder_ffn_dim=48,
        hidden_expansion=0.5 if depth == 10 else 1.0, d_model=16, decoder_in_channels=[32] * 3,
        decoder_ffn_dim=24, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        num_queries=20, num_labels=K,
    )  # fmt: skip
    model = getattr(transformers, f"{names[kind]}ForObjectDetection")(config).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, array in (*model.named_parameters(), *model.named_buffers()):
            if not array.is_floating_point() or name.endswith("n_points_scale"):
                continue
            if name.endswith("running_var"):
                values = rng.uniform(0.75, 1.25, array.shape)
            elif array.ndim > 1:
                values = rng.normal(0, np.sqrt(1.5 / np.prod(array.shape[1:])), array.shape)
            else:
                is_scale = name.endswith("weight")
                values = rng.normal(1.0 if is_scale else 0.0, 0.1, array.shape)
            array.copy_(torch.tensor(values))
    return model


def real_images(coco_tiny: Path) -> np.ndarray:
    """Two photos, stretched."""
    cv2 = pytest.importorskip("cv2")
    paths = sorted((coco_tiny / "val2017").glob("*.jpg"))[:2]
    return np.stack([cv2.resize(cv2.imread(str(path))[..., ::-1], SHAPE[::-1]) for path in paths])


def objects() -> GroundTruth:
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 80, (2, 6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 45, (2, 6, 2))], -1)
    valid = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]], bool)
    labels = rng.integers(0, K, (2, 6), dtype=np.int32)
    return GroundTruth(jnp.float32(boxes), jnp.asarray(labels), jnp.asarray(valid))


def close(ours: Any, theirs: Any) -> None:
    """Within a thousandth of the largest value."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("kind", "layer_type"),
    [
        ("rt_detr_v2", "basic"),
        pytest.param("rt_detr_v2", "bottleneck", marks=pytest.mark.slow),
        ("rt_detr", "basic"),
    ],
)
def test_everything_equals_transformers(
    kind: str, layer_type: str, coco_tiny: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    theirs = small_model(kind, layer_type)
    theirs.save_pretrained(tmp_path / "theirs")
    run = open_detector(tmp_path / "theirs", sharding=replicated(data_mesh()))
    assert run.class_names == tuple(f"LABEL_{i}" for i in range(K))
    model = run.detector.merge(run.variables, train=False)
    images, truth = real_images(coco_tiny), objects()
    pixels = torch.tensor(images / 255, dtype=torch.float32).permute(0, 3, 1, 2)
    boxes, scale = np.asarray(truth.boxes), np.array([SHAPE[1], SHAPE[0]] * 2, np.float32)
    parts = boxes / scale
    parts = np.concatenate(
        [(parts[..., :2] + parts[..., 2:]) / 2, parts[..., 2:] - parts[..., :2]], -1
    )
    labels = [
        {
            "class_labels": torch.tensor(np.int64(truth.labels[i][keep])),
            "boxes": torch.tensor(parts[i][keep]),
        }
        for i, keep in enumerate(np.asarray(truth.valid))
    ]
    out = theirs(pixels, labels=labels)

    @jax.jit
    def run_ours(images: jax.Array) -> Any:
        maps = model.encoder(model.backbone(images)[-3:])
        memory = model.encode(images)
        features, cells = model.propose(memory)
        return maps, model.decode(features, cells.boxes, memory)

    maps, layers = run_ours(images)
    for ours, level in zip(maps, out.encoder_last_hidden_state, strict=True):
        close(ours, level.permute(0, 2, 3, 1))
    for i, layer in enumerate(layers):
        close(layer.cls_logits, out.intermediate_logits[:, i])
        close(layer.boxes, out.intermediate_reference_points[:, i])

    # Detections: theirs are the best (query, class) pairs, in pixels, not clipped.
    batch = Batch(
        jnp.asarray(images), jnp.tile(jnp.float32(SHAPE), (2, 1)), jnp.ones((2, 2)),
        jnp.arange(2), jnp.ones(2, bool), truth,
    )  # fmt: skip
    found = jax.jit(lambda batch: detectors.detect(model, batch))(batch)
    scores = torch.sigmoid(out.logits).flatten(1)
    best, order = torch.sort(scores, dim=1, descending=True, stable=True)
    count = found.scores.shape[1]
    is_valid = np.asarray(found.valid)
    assert is_valid[:, :50].all()
    close(found.scores[:, :50], best[:, :50])
    where = np.asarray(to_corners(jnp.asarray(out.pred_boxes.detach().numpy()), SHAPE))
    where = np.clip(where, 0, np.tile(SHAPE[::-1], 2))
    for image in range(2):
        rows = order[image, :50].numpy()
        assert np.mean(np.asarray(found.labels)[image, :50] == rows % K) > 0.95  # but for ties
        same = np.abs(np.asarray(found.boxes)[image, :50] - where[image][rows // K]).max(-1) < 0.1
        assert same.mean() > 0.95
    assert count == run.config.model.postprocess.max_detections

    # Losses of the same matching, without noised objects, which are drawn at random.
    model.config = dataclasses.replace(model.config, denoising=c.DenoisingConfig(num_objects=0))
    sums = jax.jit(lambda batch: loss_sums(model, batch, run.config.loss, jax.random.key(0), None))
    terms = {name: float(value) for name, value in sums(batch).normalized().items()}
    of = {name: value.item() for name, value in out.loss_dict.items()}
    cls = sum(value for name, value in of.items() if name.startswith("loss_vfl"))
    np.testing.assert_allclose(terms["cls_loss"], cls, rtol=1e-4)
    np.testing.assert_allclose(terms["box_loss"], sum(of.values()) - cls, rtol=1e-4)
    np.testing.assert_allclose(terms["loss"], out.loss.item(), rtol=1e-4)


def test_weights_go_back(tmp_path: Path) -> None:
    """A run is written in their layout, and transformers reads it, without a word."""
    theirs = small_model("rt_detr_v2", "basic")
    there, back = tmp_path / "theirs", tmp_path / "back"
    theirs.save_pretrained(there)
    back.mkdir()
    assert main(["export-weights", str(there), "--out", str(back / "model.safetensors")]) == 0
    (back / "config.json").write_bytes((there / "config.json").read_bytes())
    again, info = type(theirs).from_pretrained(back, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert {name.rpartition(".")[2] for name in info["missing_keys"]} <= {"num_batches_tracked"}
    state = again.state_dict()
    for name, array in theirs.state_dict().items():
        np.testing.assert_array_equal(state[name].numpy(), array.numpy(), err_msg=name)
    # What was written says what it is, without the file beside it.
    (back / "config.json").unlink()
    run = open_detector(back, sharding=replicated(data_mesh()))
    assert (
        run.config.model == detector_of(R18 | json.loads((there / "config.json").read_text())).model
    )


# --- config.json, which needs neither of them -----------------------------------------------------

R18 = {
    "model_type": "rt_detr_v2",
    "backbone": None,
    "backbone_config": {
        "model_type": "rt_detr_resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
        "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512],
    },
    "hidden_expansion": 0.5, "decoder_layers": 3, "id2label": {"0": "cat", "1": "dog"},
}  # fmt: skip


def test_published_sizes() -> None:
    """R18 has 20 million parameters, R50 42, R101 76 (Lv et al. 2024, table 3)."""
    r50 = {"model_type": "rt_detr_v2"}
    r101 = r50 | {
        "backbone_config": {"depths": [3, 4, 23, 3]}, "encoder_ffn_dim": 2048,
        "encoder_hidden_dim": 384,
    }  # fmt: skip
    for about, millions in ((R18, 20), (r50, 42), (r101, 76)):
        published = detector_of(about)
        made = nnx.eval_shape(
            lambda model=published.model: detectors.build_model(model, 80, rngs=nnx.Rngs(0))
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))
        assert abs(count / 1e6 - millions) < 1, (count, millions)
    assert detector_of(R18).class_names == ("cat", "dog")
    assert detector_of(r50).category_ids[-1] == 90


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "detr"}, "Invalid enum value 'detr'.*model_type"),
        ({"encoder_layers": 2}, "encoder_layers is 2; this version computes 1"),
        ({"decoder_method": "discrete"}, "decoder_method is discrete"),
        ({"backbone_config": {"depths": [9, 9]}}, r"backbone_config.depths is \(9, 9\)"),
        ({"backbone_config": {"model_type": "hgnet_v2"}}, "backbone is hgnet_v2"),
        ({"backbone_config": {"hidden_act": "gelu"}}, "backbone_config.hidden_act is gelu"),
        ({"backbone_config": 5}, "no config of an RT-DETR.*backbone_config"),
        ({"num_queries": "many"}, "no config of an RT-DETR.*num_queries"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "id2label has 2 names"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        detector_of(json.loads(json.dumps(R18 | changes)))
    with pytest.raises(WeightsError, match="no config of an RT-DETR"):
        detector_of([])
