"""Writes small folders in PASCAL VOC's layout, and reads them."""

from pathlib import Path

from PIL import Image

from harmonic_jax.config import DataConfig
from harmonic_jax.data.folders import FolderSource
from harmonic_jax.data.voc import read_voc

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def thing(name: str = "cat", box: object = (1, 2, 10, 20), extra: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box, strict=True))  # type: ignore[call-overload]
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write(root: Path, images: dict[str, str | None], *, split: str = "train") -> None:
    """Images by name with the inside of their annotation; None: no annotation."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{name}\n" for name in images)
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    path.write_bytes(lines.encode("utf-8", "surrogateescape"))
    for name, content in images.items():
        for folder in ("Annotations", "JPEGImages"):
            (root / folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        if content is not None:
            text = f"<annotation>{content}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def read(root: Path, split: str = "train") -> FolderSource:
    return read_voc(root, split, DataConfig())
