"""Other losses for the same problem, under one recipe."""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, CASES, hardet
from harmonic_jax.config import RIVALS, LossConfig

ARMS = ("giou", "gfl", "vfl", "iou_balanced", "pisa", "correlation")
FIELDS = ("cls_loss", "box_loss", "box_weight", "correlation")


def grid() -> Grid:
    arms = {"baseline": BASELINE, "hardet": hardet()}
    arms |= {name: (*BASELINE, *_options(RIVALS[name])) for name in ARMS}
    return Grid(
        title="Rivals",
        cases={"retinanet-scenes": CASES["retinanet-scenes"]},
        arms=arms,
        baseline="baseline",
        references=("hardet",),
        seeds=(0, 1, 2),
    )


def _options(loss: LossConfig) -> tuple[str, ...]:
    options: list[str] = []
    for field in FIELDS:
        value = getattr(loss, field)
        if value != getattr(LossConfig(), field):
            options += [f"--loss.{field.replace('_', '-')}", str(value)]
    return tuple(options)
