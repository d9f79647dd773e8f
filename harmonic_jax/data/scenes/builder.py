"""Fashion scenes as a TFDS data set, with the features of TFDS's `coco` and masks besides.

TensorFlow is not needed.

    builder = FashionScenes(data_dir=folder)
    builder.download_and_prepare()
    train = builder.as_data_source("train")

Once this module is imported, `tfds.builder("fashion_scenes")` and `tfds.data_source(..)` know the
name; `tfds.builder_from_directory(builder.data_dir)` reads a prepared copy without it.
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

from harmonic_jax.data.scenes.items import CLASS_NAMES, ItemPool, load_items
from harmonic_jax.data.scenes.options import CROWDED, SceneOptions
from harmonic_jax.data.scenes.render import Scene, render_scene, scene_rng
from harmonic_jax.masks import encode_masks

Split = Literal["train", "validation"]

# The generator's seed of each split. Another value is another data set: raise VERSION too.
_SEEDS: dict[Split, int] = {"train": 20170825, "validation": 20170826}
_FIRST_IMAGE_ID: dict[Split, int] = {"train": 0, "validation": 1_000_000}
_OBJECT_IDS_PER_IMAGE = 256


@dataclasses.dataclass(eq=False)
class FashionScenesConfig(tfds.core.BuilderConfig):
    """One variant of the data set: how hard, and how many scenes a split."""

    options: SceneOptions = dataclasses.field(default_factory=SceneOptions)
    num_train: int = 4000
    num_validation: int = 500


class FashionScenes(tfds.core.GeneratorBasedBuilder):
    """Fashion-MNIST items on procedural backgrounds, scaled, turned and partly hidden."""

    name = "fashion_scenes"
    url_infos = None  # nothing is downloaded; looking for checksums would need more packages
    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "4000 training and 500 held-out scenes of 128 x 128 pixels.",
        "1.1.0": "The same scenes, with the mask of each object.",
    }
    BUILDER_CONFIGS: ClassVar = [
        FashionScenesConfig(name="default", description="1 to 6 objects, at least 50 % visible."),
        FashionScenesConfig(
            name="crowded",
            description="6 to 14 objects, most of them against another, at least 25 % visible.",
            options=CROWDED,
        ),
    ]

    def __init__(self, *, file_format: str | None = None, **kwargs: Any) -> None:
        # ArrayRecord is the format that can be written and read at random without TensorFlow.
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.options.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Object detection scenes of ten classes of clothing. Items of Fashion-MNIST are "
                "pasted on procedural backgrounds with random size, rotation, colour, occlusion "
                "and clutter. Masks (COCO's compressed run lengths) hold the visible pixels, "
                "boxes are tight on them. Train and validation scenes share no item."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), dtype=np.uint8, encoding_format="jpeg"
                    ),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(
                        {
                            "id": np.int64,
                            "area": np.int64,
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                            "is_crowd": np.bool_,
                            "segmentation": tfds.features.Text(),
                        }
                    ),
                }
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="Items: MIT, Copyright (c) 2017 Zalando SE",
            citation="Xiao, Rasul, Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # everything comes with the package
        return {split: self._generate_examples(split) for split in _SEEDS}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        pool = load_items(split)
        for index in range(config.num_train if split == "train" else config.num_validation):
            yield index, _example(split, index, *make_scene(pool, split, index, config.options))


def make_scene(
    pool: ItemPool, split: Split, index: int, options: SceneOptions
) -> tuple[Scene, bytes]:
    """Scene `index` of a split, with its masks, and its JPEG as the data set holds it."""
    rng = scene_rng(_SEEDS[split], index)
    scene = render_scene(pool, rng, options)
    quality = int(rng.integers(80, 96))
    return scene, simplejpeg.encode_jpeg(scene.image, quality=quality, colorsubsampling="420")


def _example(split: Split, index: int, scene: Scene, jpeg: bytes) -> dict[str, Any]:
    image_id = _FIRST_IMAGE_ID[split] + index
    height, width = scene.label_map.shape
    masks = encode_masks(scene.masks)
    objects = [
        {
            # Unique over the data set and never 0, which pycocotools takes for "no match".
            "id": image_id * _OBJECT_IDS_PER_IMAGE + k + 1,
            "area": int(scene.areas[k]),
            "bbox": tfds.features.BBox(
                ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width
            ),
            "label": int(scene.labels[k]),
            "is_crowd": False,
            "segmentation": masks[k]["counts"],
        }
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes.tolist())
    ]
    return {
        "image": io.BytesIO(jpeg),
        "image/filename": f"{split}_{index:06d}.jpg",
        "image/id": image_id,
        "objects": objects,
    }
