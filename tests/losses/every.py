"""Every public function of `harmonic_jax.losses` and of `losses.rivals`, called alike.

A new function has to be added here: tests/losses/test_every_function.py refuses to run without it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from harmonic_jax import losses
from harmonic_jax.losses import rivals
from tests.losses.rivals.cases import CASES, IOU, OBJECTS, with_integers
from tests.losses.rivals.cases import CLASSES as GROUPS

N = 12
_RNG = np.random.default_rng(0)
LABELS = _RNG.integers(0, 4, N).astype(np.int32)
_LOW, _SIZE = _RNG.uniform(0, 20, (2, N, 2)), _RNG.uniform(5, 30, (2, N, 2))
PRED, TARGET = np.concatenate([_LOW, _LOW + _SIZE], axis=-1)
UNIT = list(_RNG.uniform(0.05, 0.95, (6, N)))
LOGITS = _RNG.normal(0, 2, (N, 4))
MASK_LOGITS, MASKS = _RNG.normal(0, 2, (N, 3, 3)), _RNG.uniform(0, 1, (N, 3, 3))


class Function(NamedTuple):
    call: Callable[..., Any]  # as that of `tests.losses.rivals.cases.Case`
    floats: list[np.ndarray]  # [n, ...] each
    is_loss: bool = True  # there is a gradient


def _every() -> dict[str, Function]:
    boxes, floats = [PRED, TARGET], UNIT
    plain = {
        "harmonic_loss": floats[:2],
        "task_contrastive_loss": floats[:3],
        "harmonic_iou_loss": floats[:1],
        "hardet_loss": floats[:5],
        "smooth_l1_loss": boxes,
        "mask_loss": [MASK_LOGITS, MASKS],
        "softmax_entropy": [LOGITS],
        "sigmoid_entropy": [LOGITS[:, 0]],
        **dict.fromkeys(
            ("aligned_iou", "iou_loss", "giou_loss", "diou_loss", "ciou_loss", "eiou_loss"), boxes
        ),
    }
    every = {
        name: Function(with_integers(getattr(losses, name), at=0), arrays)
        for name, arrays in plain.items()
    }
    for name in ("softmax_cross_entropy", "sigmoid_cross_entropy", "sigmoid_focal_loss"):
        every[name] = Function(with_integers(getattr(losses, name), LABELS, at=1), [LOGITS])
    for name, case in CASES.items():
        every[name] = Function(case.call, case.floats)
    rank = with_integers(rivals.iou_hierarchical_rank, GROUPS, OBJECTS, at=1)
    return every | {"iou_hierarchical_rank": Function(rank, [IOU], is_loss=False)}


EVERY = _every()
