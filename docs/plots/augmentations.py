"""Draws docs/augmentations.jpg: fashion scenes after each augmentation that joins or cuts images.

python docs/plots/augmentations.py
"""

from collections import Counter
from pathlib import Path

import numpy as np

from harmonic_jax.config import AugmentConfig, DataConfig
from harmonic_jax.data.augment import Sample, augment
from harmonic_jax.data.mix import Mixer
from harmonic_jax.data.sample import mask_grids
from harmonic_jax.data.scenes import CLASS_NAMES, load_items, render_scene, scene_rng
from harmonic_jax.masks import encode_masks, paste_masks
from harmonic_jax.report import LabelledBoxes, draw_objects
from harmonic_jax.report.boxes import encode_jpeg, text_mask

PICTURE = Path(__file__).parent.parent / "augmentations.jpg"
SIDE = 288
CHANGES = (
    ("an image", 0, {}),
    ("large_scale_jitter", 2, {"large_scale_jitter": (0.1, 2.0)}),
    ("mosaic", 0, {"mosaic": 1.0}),
    ("mosaic, large_scale_jitter", 8, {"mosaic": 1.0, "large_scale_jitter": (0.1, 2.0)}),
    ("another image", 0, {}),
    ("copy_paste", 1, {"copy_paste": 1.0}),
    ("mixup", 0, {"mixup": 1.0}),
    ("erase", 3, {"erase": 1.0}),
)


def main() -> None:
    items, scenes = load_items("train"), []
    for number in (3, 5, 4, 8):
        scene = render_scene(items, scene_rng(0, number))
        boxes = scene.boxes.astype(np.float32)
        masks = encode_masks(scene.masks)
        scenes.append(Sample(scene.image, boxes, scene.labels, boxes, masks, boxes))
    pictures = []
    for title, seed, changes in CHANGES:
        order = scenes[1:] if title == "another image" else scenes
        pictures.append(_titled(title, _draw(_changed(order, seed, changes))))
    rows = [np.hstack(pictures[:4]), np.hstack(pictures[4:])]
    PICTURE.write_bytes(encode_jpeg(np.vstack(rows), quality=80))


def _changed(scenes: list[Sample], seed: int, changes: dict[str, object]) -> Sample:
    """The first scene, mixed with the others in their order."""
    settings = AugmentConfig(**{"flip": 0.0, **changes})  # type: ignore[arg-type]
    config = DataConfig(short_sides=(SIDE,), masks=True, augment=settings)
    rng, others = np.random.default_rng(seed), iter(scenes[1:])
    mixer = Mixer(np.array([SIDE, SIDE]), config, rng, Counter())
    return augment(mixer.mix(scenes[0], lambda: next(others)), rng, config)


def _draw(sample: Sample) -> np.ndarray:
    assert sample.masks is not None
    grids = mask_grids(sample.masks, sample.cuts, size=112)
    masks = paste_masks(grids / 255, sample.frames, *sample.image.shape[:2])
    objects = LabelledBoxes(sample.boxes, sample.labels, masks=masks)
    return draw_objects(sample.image, objects, CLASS_NAMES, size=(SIDE, SIDE))


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    framed = np.full((SIDE + 40, SIDE + 16, 3), 255, np.uint8)
    framed[32:-8, 8:-8] = picture
    ink = text_mask(title, 15)
    place = framed[6 : 6 + ink.shape[0], 8 : 8 + ink.shape[1]]
    place[:] = np.round(place * (1 - ink[..., None]))
    return framed


if __name__ == "__main__":
    main()
