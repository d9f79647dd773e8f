"""Options that evaluation and prediction share: how overlaps are settled, how often to look."""

import argparse
from typing import get_args

from harmonic_jax.config import ConfigError, NmsName
from harmonic_jax.inference import TTA


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """Adds --nms and --tta and what belongs to them."""
    group = parser.add_argument_group("how detections are made (docs/inference.md)")
    group.add_argument(
        "--nms", choices=get_args(NmsName), help="another suppression than the run's"
    )
    group.add_argument("--nms-sigma", type=float, help="of soft_gaussian and matrix (0.5)")
    group.add_argument(
        "--tta", action="store_true", help="test-time augmentation: other scales, and mirrored"
    )
    group.add_argument(
        "--tta-scales",
        type=float,
        nargs="+",
        metavar="F",
        default=TTA().scales,
        help="factors of the run's image size (%(default)s)",
    )
    group.add_argument("--tta-no-flip", action="store_true", help="no mirrored images")
    group.add_argument(
        "--tta-merge",
        choices=("auto", "nms", "soft_nms", "wbf"),
        default=TTA().merge,
        help="how the looks are joined; auto: by weighted boxes fusion (wbf), with masks nms",
    )
    group.add_argument("--tta-iou", type=float, help="overlap of one object, with nms or wbf")


def tta_of(args: argparse.Namespace) -> TTA | None:
    """None without --tta.

    Raises:
      ConfigError: a value is not legal.
    """
    if not args.tta:
        fields = ("scales", "no_flip", "merge", "iou")
        defaults = (TTA().scales, False, TTA().merge, None)
        for field, default in zip(fields, defaults, strict=True):
            if getattr(args, f"tta_{field}") != default:
                raise ConfigError(f"--tta-{field.replace('_', '-')} goes with --tta")
        return None
    return TTA(
        scales=tuple(args.tta_scales),
        flip=not args.tta_no_flip,
        merge=args.tta_merge,
        merge_iou=args.tta_iou,
    )


def inference_suffix(args: argparse.Namespace) -> str:
    """Names a report after the options that it was made with; empty without any."""
    parts = []
    if args.nms is not None:
        parts.append(f"_{args.nms}")
    if args.nms_sigma is not None:
        parts.append(f"_sigma{args.nms_sigma:g}")
    if args.tta:
        scales = "_".join(f"{scale:g}" for scale in args.tta_scales)
        parts.append(f"_tta_{args.tta_merge}_{scales}{'_unflipped' if args.tta_no_flip else ''}")
        parts.append("" if args.tta_iou is None else f"_iou{args.tta_iou:g}")
    return "".join(parts)
