"""`harmonic-jax predict IMAGES.. [--run RUN]`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from tyro.conf import FlagCreatePairsOff, Positional

from harmonic_jax.cli.command import EXIT_FAILED, EXIT_STOPPED, command, complain, quoted
from harmonic_jax.cli.options import FLAT, UsageError, given_options
from harmonic_jax.config import ConfigError, NmsName
from harmonic_jax.inference import TTA, load
from harmonic_jax.inference.augmentation import settled
from harmonic_jax.inference.inputs import find_inputs, is_video, listed
from harmonic_jax.inference.output import DETECTIONS, IMAGES, PICTURES, OutputFolder
from harmonic_jax.inference.predictions import Predictor, Summary
from harmonic_jax.json_file import read_json
from harmonic_jax.pretrained.hub import DEFAULT_DETECTOR, is_published
from harmonic_jax.terminal import Terminal, counted, track
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.watchdog import StopSignal

_NAMED = 20


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """How detections are made (docs/inference.md)."""

    nms: NmsName | None = None
    """Another suppression than the run's."""
    nms_sigma: float | None = None
    """Of soft_gaussian and matrix; None: 0.5."""
    tta: bool = False
    """Test-time augmentation: other scales, and mirrored."""
    tta_scales: tuple[float, ...] = TTA().scales
    """Factors of the run's image size."""
    tta_no_flip: FlagCreatePairsOff[bool] = False
    """No mirrored images."""
    tta_merge: Literal["auto", "nms", "soft_nms", "wbf"] = TTA().merge
    """How the looks are joined; auto: by weighted boxes fusion (wbf), with masks nms."""
    tta_iou: float | None = None
    """Overlap of one object, with nms or wbf."""

    def augmentation(self) -> TTA | None:
        """None without --tta."""
        if not self.tta:
            for option in given_options(dataclasses.replace(self, nms=None, nms_sigma=None)):
                raise UsageError(f"{option} goes with --tta")
            return None
        return TTA(
            scales=self.tta_scales,
            flip=not self.tta_no_flip,
            merge=self.tta_merge,
            merge_iou=self.tta_iou,
        )

    @property
    def suffix(self) -> str:
        """Names a report after the options that it was made with; empty without any."""
        parts = []
        if self.nms is not None:
            parts.append(f"_{self.nms}")
        if self.nms_sigma is not None:
            parts.append(f"_sigma{self.nms_sigma:g}")
        if self.tta:
            scales = "_".join(f"{scale:g}" for scale in self.tta_scales)
            parts.append(f"_tta_{self.tta_merge}_{scales}{'_unflipped' * self.tta_no_flip}")
            parts.append("" if self.tta_iou is None else f"_iou{self.tta_iou:g}")
        return "".join(parts)


@dataclasses.dataclass(frozen=True)
class Options:
    """Find objects in images and videos: results in COCO format, and pictures."""

    inputs: Positional[tuple[str, ...]]
    """Files, folders, globs ('photos/**/*.jpg')."""
    run: Path = Path(DEFAULT_DETECTOR)
    """A run's folder or file; or retinanet_lite0_voc, hf:OWNER/NAME, torchvision:NAME."""
    last: bool = False
    """The newest checkpoint instead of the best."""
    out: Path = Path("predictions")
    """Folder to write to."""
    score_threshold: Annotated[float | Literal["best"], "[0, 1]"] = 0.3
    """What scores less is left out, of the files too; best: that of the best F1, by `eval RUN`."""
    batch_size: Annotated[int, "[1, 65536]"] = 4
    """Images at a time."""
    pictures: bool = True
    """Write pictures too, not only results."""
    stored_pixels: bool = False
    """Do not turn photos as EXIF says: boxes as in COCO's and VOC's annotations."""
    inference: Annotated[InferenceOptions, FLAT] = InferenceOptions()


@command(Options, "predict")
def main(options: Options) -> int:
    """Returns the exit status: 0 done; 1 failed, nothing read or a file not written; 3 stopped."""
    console = Terminal()
    tta = options.inference.augmentation()
    if not options.inputs:
        raise UsageError("INPUTS must be given: images, videos, or folders of them")
    paths, left_out = find_inputs(options.inputs)
    has_video = any(map(is_video, paths))
    use_compilation_cache()
    detector = load(
        options.run,
        last=options.last,
        nms=options.inference.nms,
        nms_sigma=options.inference.nms_sigma,
        # Not more than there is to do: rows without an image cost as much as those with one.
        batch_size=options.batch_size if has_video else min(options.batch_size, len(paths)),
        upright=not options.stored_pixels,
    )
    if tta is not None:
        tta = settled(tta, detector.config)
    least = options.score_threshold
    if least == "best":
        least = _best_score(options.run, detector.step, options.inference.suffix)
        console.print(f"score threshold: {least:.3f}")
    folder = OutputFolder(
        options.out,
        paths,
        class_names=detector.class_names,
        category_ids=detector.category_ids,
        draws=options.pictures,
    )
    with StopSignal() as stop:
        predictor = Predictor(
            detector,
            folder=folder,
            score_threshold=least,
            tta=tta,
            track=track,
            stops=lambda: stop.requested,
        )
        try:
            predictor.run(paths)
            stopped_by = stop.name if predictor.is_stopped else None
        except KeyboardInterrupt:
            stopped_by = stop.name or "SIGINT"
        finally:  # whatever happens, what was found is kept
            folder.save(predictor.summary.images, predictor.summary.found)
    if left_out:
        console.print(f"left out: {listed(left_out)}")
    _tell(console, predictor.summary, folder)
    if stopped_by:
        complain(f"stopped by {stopped_by}; what was found so far is written to {folder.path}")
        return EXIT_STOPPED
    return EXIT_FAILED if predictor.summary.unwritten or not predictor.summary.images else 0


class _AtScore(msgspec.Struct):
    best_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class _Metrics(msgspec.Struct):
    """What is read of an evaluation's metrics.json."""

    at_score: list[_AtScore] = []


def _best_score(run: Path, step: int, suffix: str) -> float:
    """Of the newest evaluation at a step of a run, with the suffix of the options of inference."""
    folder = run if run.is_dir() else Path() if is_published(run) else run.parent
    files = sorted(folder.glob(f"eval_*_step{step}{suffix}/metrics.json"), key=os.path.getmtime)
    try:
        found = msgspec.convert(read_json(files[-1]), _Metrics).at_score if files else []
    except msgspec.ValidationError as error:
        raise ConfigError(f"{files[-1]}: {error}") from None
    best = found[0].best_score if found else None
    if best is None:
        told = f"{folder} has no evaluation of step {step} with a best score"
        raise ConfigError(f"{told}: run `harmonic-jax eval {quoted(run)}` first")
    return best


def _tell(console: Terminal, summary: Summary, folder: OutputFolder) -> None:
    for what, lines in (
        ("skipped", summary.skipped),
        ("cut short", summary.cut),
        ("not written", summary.unwritten),
    ):
        for line in lines[:_NAMED]:
            console.print(f"{what}: {line}")
        if len(lines) > _NAMED:
            console.print(f"{what}: {len(lines) - _NAMED} more")
    objects = summary.objects()
    listing = ", ".join(f"{count} {name}" for name, count in objects.most_common(10))
    more = ", .." if len(objects) > 10 else ""
    counts = [f"{counted(len(summary.images), 'image')}, {counted(objects.total(), 'object')}"]
    counts[0] += f" ({listing}{more})" if listing else ""
    if summary.skipped:
        counts.append(f"{counted(len(summary.skipped), 'file')} skipped")
    if summary.unwritten:
        counts.append(f"{len(summary.unwritten)} not written")
    console.print("; ".join(counts))
    pictures = f", {summary.num_pictures} in {PICTURES}/" if summary.num_pictures else ""
    console.print(f"written to {folder.path}: {DETECTIONS}, {IMAGES}{pictures}")
