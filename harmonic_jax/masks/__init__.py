"""Instance masks outside of the network: COCO's run lengths, from and to pixels; numpy alone."""

from harmonic_jax.masks.paste import paste_masks
from harmonic_jax.masks.rle import Rle, RleTable, encode_masks, join_tables
from harmonic_jax.masks.segmentation import MaskFault, encode_segmentations

__all__ = [
    "MaskFault",
    "Rle",
    "RleTable",
    "encode_masks",
    "encode_segmentations",
    "join_tables",
    "paste_masks",
]
