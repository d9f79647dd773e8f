"""The feed's peer: PyTorch's DataLoader over Pillow, in worker processes.

A module of its own, because its workers import it: it needs PyTorch, Pillow and NumPy only.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

FILL = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of a batch: its file, the size to resize to, and the padded size."""

    path: str
    size: tuple[int, int]  # height, width
    padded: tuple[int, int]


class Images(Dataset):
    """Decoded and resized images, uint8 [h, w, 3], with the padded size of their batch."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        item = self.items[index]
        with Image.open(item.path) as image:
            resized = image.convert("RGB").resize(item.size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)), item.padded


def pad_batch(samples: list[tuple[torch.Tensor, tuple[int, int]]]) -> torch.Tensor:
    """uint8 [b, h, w, 3], each image at the top left, the rest of one colour."""
    batch = torch.empty(len(samples), *samples[0][1], 3, dtype=torch.uint8)
    row = torch.tensor(FILL, dtype=torch.uint8).expand(batch.shape[2], 3).contiguous()
    for canvas, (image, _) in zip(batch, samples, strict=True):
        height, width = image.shape[:2]
        canvas[:height, :width] = image
        canvas[:height, width:] = row[width:]
        canvas[height:] = row
    return batch


class TorchFeed:
    """Passes over the same batches; its workers stay alive between them, as in a training."""

    def __init__(self, batches: Sequence[Sequence[Item]], *, workers: int) -> None:
        items = [item for batch in batches for item in batch]
        self._loader = DataLoader(
            Images(items),
            batch_size=len(batches[0]),
            num_workers=workers,
            collate_fn=pad_batch,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,  # JAX's threads forbid forks
        )

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._loader)

    def cpu_seconds(self) -> float:
        """Processor time of the workers so far."""
        workers = getattr(self._loader._iterator, "_workers", [])
        return sum(_cpu_seconds(worker.pid) for worker in workers)


def _cpu_seconds(pid: int) -> float:
    from os import sysconf

    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / sysconf("SC_CLK_TCK")  # user, system
