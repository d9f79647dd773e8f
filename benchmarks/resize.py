"""Our resizing of photos (OpenCV, on bytes) beside torchvision's (PyTorch, on floats).

    python -m benchmarks.resize COCO_FOLDER [NUM_IMAGES]

For torchvision's sizes of its FPN detectors and of its SSD, and for `data.resizing` = default and
= torchvision: how many images get another size, and how far pixels of 0..255 are apart where the
size is the same. No speed is measured.
"""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from harmonic_jax.data.resize import fit_size, resize_image

UNBOUNDED = (10**6, 10**6)


def torchvision_resize(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """What `GeneralizedRCNNTransform` does to `[h, w, 3]`, in floats of 0..255."""
    height, width = image.shape[:2]
    scale = min(800 / min(height, width), 1333 / max(height, width))
    x = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
    how = (
        {"scale_factor": scale, "recompute_scale_factor": True} if size is None else {"size": size}
    )
    resized = torch.nn.functional.interpolate(x, mode="bilinear", align_corners=False, **how)
    return resized[0].permute(1, 2, 0).numpy()


def compare(images: list[np.ndarray], *, is_ssd: bool, resizing: str) -> str:
    apart, others = [], 0
    for image in images:
        theirs = torchvision_resize(image, (300, 300) if is_ssd else None)
        whole = math.floor if resizing == "torchvision" else round
        size = (300, 300)
        if not is_ssd:
            shape = image.shape[:2]
            size = fit_size(*shape, short_side=800, max_side=1333, bounds=UNBOUNDED, whole=whole)
        others += size != theirs.shape[:2]
        ours = resize_image(image, theirs.shape[:2], averages_areas=resizing != "torchvision")
        apart.append(np.abs(ours - theirs).ravel())
    change = np.concatenate(apart)
    return (
        f"{'300 x 300' if is_ssd else '800/1333'}, {resizing}: {others} of {len(images)} sizes "
        f"differ; pixels by {change.mean():.2f} on average, 99 % by at most "
        f"{np.quantile(change, 0.99):.2f}, all by at most {change.max():.1f}"
    )


def main(folder: Path, num_images: int) -> None:
    entries = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["images"]
    files = [folder / "val2017" / entry["file_name"] for entry in entries[:num_images]]
    images = [cv2.imread(str(file)) for file in files]
    for is_ssd in (False, True):
        for resizing in ("default", "torchvision"):
            print(compare(images, is_ssd=is_ssd, resizing=resizing))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
