"""What LVIS adds to COCO's annotations: an image is searched for some of the classes alone."""

import dataclasses

import numpy as np

LISTS = {"absent": "neg_category_ids", "partial": "not_exhaustive_category_ids"}


@dataclasses.dataclass(frozen=True, eq=False)
class Federation:
    """The classes that images were searched for, beside those of their objects.

    Attributes:
      absent: int64 [n, 2], image id and label of what was looked for and is not there.
      partial: int64 [m, 2], of what is there, and of which not every object is annotated.
      frequencies: of each class "r", "c" or "f", as under 10, under 100 or more training images
        have it; empty where that is not known.

    Source: Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019.
    """

    absent: np.ndarray
    partial: np.ndarray
    frequencies: tuple[str, ...] = ()

    def is_judged(self, found: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Which detections are of a class that their image was wholly searched for, bool [d], by
        the image ids and labels of detections [d, 2] and objects [g, 2]."""
        parts = (found, objects, self.absent, self.partial)
        image, label = np.concatenate(parts).T
        key = np.unique(image, return_inverse=True)[1] * (label.max(initial=0) + 1) + label
        own, present, absent, partial = np.split(key, np.cumsum([*map(len, parts[:-1])]))
        return np.isin(own, np.append(present, absent)) & ~np.isin(own, partial)
