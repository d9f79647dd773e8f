"""Weights as a user handles them: imported, evaluated, fine-tuned, exported.

The published files are not at hand: random numbers in their layout take their place.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import harmonic_jax.__main__
from harmonic_jax.cli.configs import config_from_args
from harmonic_jax.cli.export import torchvision_state_dict
from harmonic_jax.cli.import_weights import import_run
from harmonic_jax.config import Config, DefaultBoxConfig, SSDConfig, VGGConfig
from harmonic_jax.pretrained.models import DETECTORS, PublishedDetector
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.saved_run import open_detector
from harmonic_jax.training.sharding import data_mesh, replicated
from tests.cli.conftest import SMALL
from tests.pretrained.torch_layout import random_state_dict, with_old_names

KNOWN = ("__background__", "even", "N/A", "odd", "N/A")


def main(*args: object) -> int:
    return harmonic_jax.__main__.main([str(arg) for arg in args])


def small_config(coco_folder: Path, run_dir: Path) -> Config:
    data = ("--data.format", "coco", "--data.root", str(coco_folder))
    return config_from_args(
        ["retinanet_r18_scenes", *SMALL, *data, "--data.eval-split", "pictures",
         "--run-dir", str(run_dir)]
    )  # fmt: skip


def export_run(path: Path) -> dict[str, np.ndarray]:
    return torchvision_state_dict(open_detector(path, sharding=replicated(data_mesh())), path)


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (array.shape, array.dtype), name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def imported(coco_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of an imported run, and the state dict it was made of."""
    run_dir = tmp_path_factory.mktemp("imported") / "run"
    config = small_config(coco_folder, run_dir)
    state = with_old_names(random_state_dict(config.model, len(KNOWN)))
    state["head.classification_head.cls_logits.weight"] *= 10  # classes that win somewhere
    state["head.classification_head.cls_logits.bias"] *= 0
    assert "head.regression_head.conv.2.weight" in state
    assert "backbone.fpn.inner_blocks.0.bias" in state
    foreign = PublishedDetector(config.model, KNOWN, tuple(range(len(KNOWN))), config.data)
    line = import_run(state, config, foreign, RunFolder(run_dir))
    counters = sum(name.endswith("num_batches_tracked") for name in state)
    assert f"{len(state)} tensors" in line
    assert f"5 classes; {counters} tensors kept" in line
    return run_dir, state


def test_the_export_is_the_import_bit_for_bit(imported, tmp_path, capsys) -> None:
    run_dir, state = imported
    out = tmp_path / "back.safetensors"
    assert main("export-weights", run_dir, "--out", out) == 0
    assert_same_bits(safetensors.numpy.load_file(out), state)
    assert main("export-weights", run_dir, "--out", out) == 1
    assert "back.safetensors exists; nothing is overwritten" in capsys.readouterr().err


def test_evaluation_matches_classes_by_name(imported, tmp_path, capsys) -> None:
    run_dir, _ = imported
    assert main("eval", run_dir, "--json", tmp_path / "m.json", "--batch-size", "3") == 0
    shown = capsys.readouterr().out
    assert "step 0 of" in shown
    line = next(line for line in shown.splitlines() if line.startswith("dropped "))
    assert "detections of the 3 classes that" in line
    assert int(line.split()[1]) > 0
    found = json.loads(next(run_dir.glob("eval_*_step0/detections.json")).read_text())
    assert {row["category_id"] for row in found} == {3, 7}


def test_a_class_the_detector_lacks_is_named(imported, coco_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(coco_folder, folder)
    path = folder / "annotations" / "instances_pictures.json"
    path.write_text(path.read_text().replace('"even"', '"eleven"'))
    assert main("eval", imported[0], "--root", folder) == 1
    assert "the detector does not know the classes 'eleven'" in capsys.readouterr().err


def test_fine_tune_and_export(imported, coco_folder: Path, tmp_path, capsys) -> None:
    run_dir, state = imported
    data = ("--data.format", "coco", "--data.root", coco_folder)
    data += ("--data.train-split", "pictures", "--data.eval-split", "pictures")
    exported = tmp_path / "back.safetensors"  # says what it is, so it does as the folder would
    assert main("export-weights", run_dir, "--out", exported) == 0
    start = ("--init", exported, "--run-dir", tmp_path / "tuned")
    # The program of test_commands.
    assert main("train", "retinanet_r18_scenes", *SMALL, *data, *start) == 0
    shown = capsys.readouterr().out
    assert "classes carried over: 'odd', 'even'; new: none" in shown
    anchors = state["head.classification_head.cls_logits.bias"].size // 5
    shapes = f"cls_head/output/bias: [{5 * anchors}] -> [{2 * anchors}]"
    assert shapes in shown

    tuned = export_run(tmp_path / "tuned")
    bias = tuned["head.classification_head.cls_logits.bias"].reshape(anchors, 2)
    old = state["head.classification_head.cls_logits.bias"].reshape(anchors, 5)[:, [3, 1]]
    assert 0 < np.abs(bias - old).max() < 0.1  # it learned for two steps


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("FILE", "--to", "yolo"), 2, "'yolo' for argument '--to'. Expected one of ('retinanet"),
        (("FILE", "--to", "retinanet_resnet50_fpn"), 1, "--out is missing"),
        (("FILE", "--to", "ssd300_vgg16", "--out", "."), 1, ". exists; choose another folder"),
        (("none.pth", "--to", "ssd300_vgg16", "--out", "x"), 1, "none.pth does not exist"),
        (
            ("FILE", "--to", "ssd300_vgg16", "--out", "x"),
            1,
            "and 68 more (here it has 90 classes; --class-names FILE",
        ),
        (
            ("FILE", "--to", "ssd300_vgg16", "--out", "x", "--norm-eps", "0"),
            1,
            "--norm-eps is 0.0; torchvision's SSD has no norms",
        ),
        (("FILE", "--to", "resnet18", "--out", "x"), 2, "--out goes with a detector; resnet18 is"),
        (("FILE", "--to", "vgg16", "--norm-eps", "0"), 2, "--norm-eps goes with a detector"),
        (("FILE", "--to", "vgg16", "--class-names", "x"), 2, "--class-names goes with a detector"),
        (("FILE", "--to", "resnet18"), 1, "ResNet-18 of width 64: the weights do not fit"),
    ],
)
def test_mistakes_are_explained_in_a_line(capsys, tmp_path, args, status: int, words: str) -> None:
    file = tmp_path / "some.safetensors"
    safetensors.numpy.save_file({"some": np.zeros(3, np.float32)}, file)
    args = [str(file) if arg == "FILE" else arg for arg in args]
    assert main("import-weights", *args) == status
    assert words in capsys.readouterr().err
    assert not Path("x").exists()


def random_detector(run_dir: Path) -> tuple[dict, Config, PublishedDetector]:
    """A small SSD's state dict, and what import_run needs to know of it."""
    model = SSDConfig(
        backbone=VGGConfig(width=4, atrous=True),
        extra_layers=(),
        default_boxes=DefaultBoxConfig(
            sizes=(10.0, 20.0, 30.0), max_ratios=(2, 3), steps=(8.0, 16.0)
        ),
    )
    foreign = PublishedDetector(model, ("cat", "dog"), (1, 2), DETECTORS["ssd300_vgg16"].data)
    config = Config(name="small", data=foreign.data, model=model, run_dir=str(run_dir))
    return random_state_dict(model, 2), config, foreign


def import_small(monkeypatch: pytest.MonkeyPatch, file: Path, state: dict, *args: str) -> int:
    """`import-weights` of a detector that is small."""
    foreign = random_detector(Path("unused"))[2]
    small = {"ssd300_vgg16": foreign}
    monkeypatch.setattr("harmonic_jax.cli.import_weights.DETECTORS", small)
    safetensors.numpy.save_file(state, file)
    return main("import-weights", file, "--to", "ssd300_vgg16", *args)


CLS_BIAS = "head.classification_head.module_list.0.bias"


def test_what_is_imported_is_whole_or_not_there(tmp_path, monkeypatch, capsys) -> None:
    state, out = random_detector(tmp_path)[0], tmp_path / "runs" / "new"
    file = tmp_path / "w.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("harmonic_jax.cli.import_weights.CheckpointStore", None)
        with pytest.raises(TypeError):
            import_small(patch, file, state, "--out", str(out))
    assert not out.exists()
    assert not list((tmp_path / "runs").iterdir())
    assert import_small(monkeypatch, file, state, "--out", str(out)) == 0
    assert f"{out}: {len(state)} tensors" in capsys.readouterr().out
    assert list((tmp_path / "runs").iterdir()) == [out]
    assert_same_bits(export_run(out), state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_come_back_as_they_were(tmp_path, dtype: str) -> None:
    state, config, foreign = random_detector(tmp_path / "run")
    halves = {name: array.astype(dtype) for name, array in state.items()}
    line = import_run(halves, config, foreign, RunFolder(tmp_path / "run"))
    assert f"{len(state)} tensors of 16 bits are float32 here" in line
    assert_same_bits(export_run(tmp_path / "run"), halves)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("cat\r\ndog\r\n\r\n", None),
        ("N/A\nN/A", None),
        ("cat\ndog\nbird\n", "(here it has 3 classes; --class-names"),
        ("cat\ndog\n\ncat\n", "'cat' is there twice"),
    ],
)
def test_class_names_from_a_file(
    tmp_path, monkeypatch, capsys, names: str, words: str | None
) -> None:
    state, out, listing = random_detector(tmp_path)[0], tmp_path / "run", tmp_path / "names.txt"
    listing.write_text(names)
    args = ("--out", str(out), "--class-names", str(listing))
    status = import_small(monkeypatch, tmp_path / "w.safetensors", state, *args)
    assert status == (0 if words is None else 1)
    assert out.exists() == (words is None)
    error = capsys.readouterr().err
    assert (error == "") if words is None else (words in error and error.count("\n") == 1)


def test_weights_that_are_broken_or_of_others(tmp_path, monkeypatch, capsys) -> None:
    """What does not fit is a matter of tests/pretrained."""
    state, out, file = random_detector(tmp_path)[0], tmp_path / "run", tmp_path / "w.safetensors"
    bias = state[CLS_BIAS]
    for array, words in (
        (
            np.where(np.arange(bias.size) == 3, np.float32(np.nan), bias),
            f"NaN or inf (1 of {bias.size}",
        ),
        (np.zeros(2 * bias.size, np.float32), f"is float32[{2 * bias.size}], the model needs"),
    ):
        assert import_small(monkeypatch, file, state | {CLS_BIAS: array}, "--out", str(out)) == 1
        assert not out.exists()
        error = capsys.readouterr().err
        assert error.startswith(f"error: weights file {file}: ")
        assert f"{CLS_BIAS} " in error
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_torchvision_reads_back_what_it_wrote(tmp_path, name: str) -> None:
    """Full size, as .pth: through import and export into a second model, strictly."""
    torch = pytest.importorskip("torch", reason="PyTorch writes .pth files")
    try:
        from torchvision.models import detection
    except Exception as error:  # without its libraries it raises OSError or RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    theirs = getattr(detection, name)(weights=None, weights_backbone=None)
    for module in theirs.modules():
        if hasattr(module, "num_batches_tracked"):
            module.num_batches_tracked += 123
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    run, out = tmp_path / "run", tmp_path / "back.safetensors"
    for args in (
        ("import-weights", tmp_path / "w.pth", "--to", name, "--out", run),
        ("export-weights", run, "--out", out),
    ):
        assert main(*args) == 0
    expected = {k: v.numpy() for k, v in theirs.state_dict().items()}
    back = safetensors.numpy.load_file(out)
    assert_same_bits(back, expected)
    second = getattr(detection, name)(weights=None, weights_backbone=None)
    second.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()}, strict=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "onnx", "--platforms", "cpu"), "--platforms goes with --to stablehlo"),
        (("--to", "stablehlo", "--platforms"), "--platforms is 'empty'; it must be some of cpu"),
    ],
)
def test_platforms_that_mean_nothing_are_refused(capsys, tmp_path, words, told: str) -> None:
    assert main("export", "nowhere", "--out", tmp_path / "x", *words) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
