"""Chooses the Fashion-MNIST items that are shipped, and writes harmonic_jax/data/scenes/items.npz.

    python docs/fashion_items.py DIR

DIR holds the four original files (train-images-idx3-ubyte.gz and its like), as the Debian package
dataset-fashion-mnist installs them. Items of train scenes come from the train files, those of
held-out scenes from the t10k files; an item that occurs in both is taken for neither.
"""

import gzip
import itertools
import sys
from pathlib import Path

import numpy as np

from harmonic_jax.data.scenes.items import CLASS_NAMES, ITEMS_FILE, item_mask

PER_CLASS = {"train": 400, "validation": 100}
FILES = {"train": "train", "validation": "t10k"}
# 64 grey levels: a quarter smaller, and no difference to see once an item is tinted.
KEPT_BITS = 0xFC
# A mask outside of these shares of the 28 x 28 pixels is an item nobody would recognise.
MASK_SHARE = (0.08, 0.95)


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of bytes, the format of MNIST: magic, one size a dimension, the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it starts with {content[:4]!r}")
    num_dims = content[3]
    shape = np.frombuffer(content, ">u4", num_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def choose_items(
    images: np.ndarray, labels: np.ndarray, *, per_class: int, seen: set[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """The first `per_class` usable items of each class, in class order, none of them in `seen`.

    Args:
      images: uint8 [n, 28, 28].
      labels: uint8 [n], 0..9.
      per_class: number of items of each class.
      seen: pixels of items taken before; the chosen ones are added.

    Returns:
      uint8 [10 * per_class, 28, 28] and uint8 [10 * per_class].

    Raises:
      ValueError: a class has too few items.
    """
    low, high = MASK_SHARE
    chosen: list[np.ndarray] = []
    for label, name in enumerate(CLASS_NAMES):
        usable = (
            image
            for image in images[labels == label] & KEPT_BITS
            if image.tobytes() not in seen and low <= item_mask(image).mean() <= high
        )
        found = []
        for image in itertools.islice(usable, per_class):
            seen.add(image.tobytes())
            found.append(image)
        if len(found) < per_class:
            raise ValueError(
                f"only {len(found)} usable items of class {name}, {per_class} are needed"
            )
        chosen += found
    return np.stack(chosen), np.repeat(np.arange(len(CLASS_NAMES), dtype=np.uint8), per_class)


def make_items(folder: Path, output: Path, *, per_class: dict[str, int] = PER_CLASS) -> None:
    """Reads the original files in `folder` and writes the shipped subset to `output`."""
    seen: set[bytes] = set()
    arrays = {}
    for split, stem in FILES.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = choose_items(
            read_idx(folder / f"{stem}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{stem}-labels-idx1-ubyte.gz"),
            per_class=per_class[split],
            seen=seen,
        )
    np.savez_compressed(output, allow_pickle=False, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/fashion_items.py DIR")
    make_items(Path(sys.argv[1]), ITEMS_FILE)
    print(f"{ITEMS_FILE}: {ITEMS_FILE.stat().st_size} bytes")
