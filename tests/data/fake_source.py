"""Data sets made in memory, for tests of everything behind a source."""

import dataclasses
import io

import numpy as np
from PIL import Image

from harmonic_jax.data.records import Record
from harmonic_jax.data.report import DataReport
from harmonic_jax.masks import encode_masks


def encode(image: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture: JPEG keeps it, and no two are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def make_record(
    index: int,
    *,
    height: int = 24,
    width: int = 32,
    boxes: object = ((2, 3, 12, 15),),
    crowd: tuple[int, ...] = (),
    difficult: tuple[int, ...] = (),
    masks: np.ndarray | None = None,
) -> Record:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    rows = np.arange(len(array))
    return Record(
        image_id=1000 + index,
        file_name=f"image{index}",
        height=height,
        width=width,
        boxes=array,
        labels=(rows % 3).astype(np.int32),
        is_crowd=np.isin(rows, crowd),
        is_difficult=np.isin(rows, difficult),
        area=(array[:, 2:] - array[:, :2]).prod(axis=1),
        masks=None if masks is None else encode_masks(masks),
    )


@dataclasses.dataclass
class FakeSource:
    """`files` holds the encoded images, or the exception that reading one raises."""

    records: list[Record]
    files: list[bytes | Exception]
    name: str = "fake:set:train"
    class_names: tuple[str, ...] = ("a", "b", "c")
    category_ids: tuple[int, ...] = (1, 2, 3)
    report: DataReport = dataclasses.field(default_factory=DataReport)
    upright: bool = False
    federation: None = None

    def image_bytes(self, index: int) -> bytes:
        data = self.files[index]
        if isinstance(data, Exception):
            raise data
        return data

    def fingerprint(self) -> str:
        return f"{self.name} {len(self.records)}"


def mixed_source(landscape: int = 7, portrait: int = 4) -> FakeSource:
    """Landscape images, then portrait ones, each with one object."""
    records, files = [], []
    for index in range(landscape + portrait):
        size = (24, 32) if index < landscape else (32, 24)
        records.append(make_record(index, height=size[0], width=size[1]))
        files.append(encode(noise(*size, seed=index)))
    return FakeSource(records, files)
