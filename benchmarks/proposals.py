"""Selection of RPN proposals against torchvision: raw outputs of 800 x 1344 images to 2000 boxes.

    python -m benchmarks.proposals

`pyramid`: 269 000 anchors on five levels, of which torchvision's training setting takes up to 2000
a level. `single level`: 12 600 anchors at stride 16, the best 12 000 to 2000, as in the first
Faster R-CNN. Each with `noise`, unrelated boxes, and `trained`, anchors around 15 objects
regressed onto them, where suppression has to look at nearly all candidates. torchvision's side is
its decoding and its `filter_proposals`; ours decodes the best anchors only.
"""

import argparse
import functools

import jax
import numpy as np
import torch
from torchvision.models.detection.rpn import RegionProposalNetwork

from benchmarks.side_by_side import compare
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.rpn import Proposals, RPNConfig, select_proposals
from harmonic_jax.ops.box_coder import encode_boxes
from harmonic_jax.ops.boxes import pairwise_iou
from harmonic_jax.structures import Predictions
from tests.ops.scenes import IMAGE, random_boxes

RATIOS = (0.5, 1.0, 2.0)
PYRAMID = make_anchors(IMAGE, (2, 6), RPNConfig().anchors)
SINGLE = make_anchors(IMAGE, (4, 4), RPNConfig().anchors)
KEPT, IOU = 2000, 0.7
Levels = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{IMAGE} -> {KEPT}, batch {args.batch}, {jax.devices()[0].platform}")
    for name, anchors, topk in (("pyramid", PYRAMID, 2000), ("single level", SINGLE, 12000)):
        for is_trained in (False, True):
            logits, deltas = _raw_outputs(anchors, args.batch, is_trained)
            scene = f"{name}, {'trained' if is_trained else 'noise'}"
            _compare(scene, anchors, logits, deltas, topk, args.repeats)


def _raw_outputs(
    anchors: tuple[np.ndarray, ...], batch: int, is_trained: bool
) -> tuple[Levels, Levels]:
    rng = np.random.default_rng(0)
    logits = [rng.normal(-3, 1.5, (batch, len(level), 1)) for level in anchors]
    deltas = [rng.normal(0, 0.2, (batch, len(level), 4)) for level in anchors]
    for image in range(batch if is_trained else 0):
        objects = random_boxes(rng, 15)
        for l, level in enumerate(anchors):
            iou = np.asarray(pairwise_iou(level, objects))
            nearest, overlap = iou.argmax(axis=1), iou.max(axis=1)
            logits[l][image, :, 0] += 14 * np.minimum(overlap, 0.7) - 6
            near = overlap > 0.3
            exact = np.asarray(encode_boxes(objects[nearest[near]], level[near]))
            deltas[l][image, near] = exact + deltas[l][image, near] / 4
    logits = [level.astype(np.float32) for level in logits]
    return logits, [level.astype(np.float32) for level in deltas]


def _compare(
    name: str,
    anchors: tuple[np.ndarray, ...],
    logits: Levels,
    deltas: Levels,
    topk: int,
    repeats: int,
) -> None:
    batch = len(logits[0])
    outputs = jax.device_put(Predictions(tuple(logits), tuple(deltas)))
    sizes = np.tile(np.float32(IMAGE), (batch, 1))

    @jax.jit
    def run(outputs: Predictions, sizes: jax.Array) -> Proposals:
        config = RPNConfig(topk_eval=topk, num_proposals_eval=KEPT, nms_iou=IOU)
        select = functools.partial(select_proposals, config=config, is_training=False)
        return jax.vmap(lambda outputs, size: select(outputs, anchors, size))(outputs, sizes)

    settings = [{"training": number, "testing": number} for number in (topk, KEPT)]
    network = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, *settings, IOU)
    objectness = [torch.tensor(level) for level in logits]
    regression = [torch.tensor(level) for level in deltas]
    all_anchors = [torch.tensor(np.concatenate(anchors))] * batch

    def peer() -> tuple[list, list]:
        joined = torch.cat(regression, dim=1).reshape(-1, 4)
        decoded = network.box_coder.decode(joined, all_anchors).view(batch, -1, 4)
        counts = [len(level) for level in anchors]
        scores = torch.cat(objectness, dim=1)
        return network.filter_proposals(decoded, scores, [IMAGE] * batch, counts)

    proposals, (boxes, scores) = run(outputs, sizes), peer()
    for image in range(batch):
        valid = np.asarray(proposals.valid[image])
        assert valid.sum() == len(boxes[image]), (valid.sum(), len(boxes[image]))
        np.testing.assert_allclose(proposals.scores[image][valid], scores[image], atol=1e-5)
        # Equal scores on two levels come in any order from torchvision.
        ours = np.asarray(proposals.boxes[image])[valid]
        apart = np.abs(ours[:, None] - boxes[image].numpy()[None]).max(axis=-1)
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 0.05
    agree = f"all {sum(map(len, boxes))} boxes within 0.05 px"
    compare(name, lambda: run(outputs, sizes), peer, repeats=repeats, agree=agree)


if __name__ == "__main__":
    main()
