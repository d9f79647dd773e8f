"""Max-IoU matching against torchvision: 120k anchors, 100 objects an image.

    python -m benchmarks.matching

Both sides start from anchors and boxes and end with the matched object of each anchor, low-quality
matches included. torchvision builds the matrix of IoUs; ours goes over the objects twice in blocks
and stops at the last one, so the usual image, which has 7 of the 100 objects of the padding, is
shown as well (torchvision gets the 7 alone). Memory is what XLA reserves beside inputs and outputs.
"""

import argparse

import jax
import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import Matcher

from benchmarks.side_by_side import compare
from harmonic_jax.detectors.parts.anchors import AnchorConfig, make_anchors
from harmonic_jax.detectors.parts.matching import MatchConfig, Matches, match_anchors
from tests.ops.scenes import random_boxes

IMAGE, OBJECTS = (640, 1024), 100
SCALES, RATIOS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    anchors = np.concatenate(make_anchors(IMAGE, (3, 7), AnchorConfig()))
    print(f"{len(anchors)} anchors, boxes padded to {OBJECTS}, {jax.devices()[0].platform}")
    for batch, objects in ((1, OBJECTS), (4, OBJECTS), (4, 7)):
        _compare(anchors, batch, objects, args.repeats)


def _compare(anchors: np.ndarray, batch: int, objects: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    boxes = np.stack([random_boxes(rng, OBJECTS, IMAGE) for _ in range(batch)])
    valid = np.tile(np.arange(OBJECTS) < objects, (batch, 1))
    arrays = jax.device_put((boxes, valid))

    @jax.jit
    @jax.vmap
    def run(boxes: jax.Array, valid: jax.Array) -> Matches:
        return match_anchors(anchors, boxes, valid, MatchConfig())

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    tensors, all_anchors = torch.tensor(boxes[:, :objects]), torch.tensor(anchors)

    def peer() -> list[torch.Tensor]:
        return [matcher(torchvision.ops.box_iou(image, all_anchors)) for image in tensors]

    matches = run(*arrays)
    state, index = np.asarray(matches.state), np.asarray(matches.index)
    ours = np.where(state == 1, index, np.where(state == 0, -1, -2))
    np.testing.assert_array_equal(ours, np.stack([result.numpy() for result in peer()]))
    memory = run.lower(*arrays).compile().memory_analysis().temp_size_in_bytes / 2**20
    name = f"batch {batch}, {objects} objects, {memory:.0f} MiB"
    compare(name, lambda: run(*arrays), peer, repeats=repeats, agree="every match equal")


if __name__ == "__main__":
    main()
