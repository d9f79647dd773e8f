"""Geometry and static-shape array algorithms: boxes, suppression, sampling, RoIAlign.

They need jax and NumPy alone. Shapes are static; numbers of any type are computed in float32.
Those with loops inside, such as `nms`, need `check_vma=False` of `jax.shard_map`.
"""

from harmonic_jax.ops.box_coder import MAX_LOG_SCALE, decode_boxes, encode_boxes
from harmonic_jax.ops.boxes import box_area, clip_boxes, iou_of_coordinates, pairwise_iou
from harmonic_jax.ops.filled_chunks import map_filled
from harmonic_jax.ops.mask_targets import crop_masks
from harmonic_jax.ops.nms import Kept, batched_nms, nms
from harmonic_jax.ops.roi_align import assign_levels, pyramid_roi_align, roi_align
from harmonic_jax.ops.sampling import Sample, sample_balanced
from harmonic_jax.ops.suppression import Suppressed, Suppression, SuppressionMethod, suppress

__all__ = [
    "MAX_LOG_SCALE",
    "Kept",
    "Sample",
    "Suppressed",
    "Suppression",
    "SuppressionMethod",
    "assign_levels",
    "batched_nms",
    "box_area",
    "clip_boxes",
    "crop_masks",
    "decode_boxes",
    "encode_boxes",
    "iou_of_coordinates",
    "map_filled",
    "nms",
    "pairwise_iou",
    "pyramid_roi_align",
    "roi_align",
    "sample_balanced",
    "suppress",
]
