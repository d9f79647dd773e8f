"""The consistency report as one HTML page that opens anywhere, and as PNGs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonic_jax.files import write_text
from harmonic_jax.metrics.consistency.study import Study
from harmonic_jax.report.breakdown import classes_figure, errors_figure
from harmonic_jax.report.cases import worst_cases
from harmonic_jax.report.document import page_html
from harmonic_jax.report.pictures import (
    Images,
    first_of_groups,
    save_contact_sheet,
    take_pictures,
)
from harmonic_jax.report.png import save_figure
from harmonic_jax.report.precision import curves_figure, headroom_figure
from harmonic_jax.report.scores import density_figure, reliability_figure
from harmonic_jax.terminal import printable

__all__ = ["Images", "write_page"]

PAGE = "consistency.html"
CONTACT_SHEET = "worst_cases.png"
PNGS = (
    "score_iou.png", "reliability.png", "head_room.png", "precision_recall.png", "classes.png",
    "errors.png", CONTACT_SHEET,
)  # fmt: skip
_OF_EACH_GROUP = 3


def write_page(
    folder: str | Path,
    study: Study,
    report: Mapping[str, Any],
    images: Images | None = None,
    *,
    title: str = "Consistency report",
    pngs: bool = True,
) -> list[Path]:
    """Writes consistency.html, and PNGs of its figures beside it.

    The page is one file: charts are SVG, pictures are small JPEGs inside it; it stays under 8 MB
    for any data set, needs no network and no script, and is light or dark as the reader's device.

    Args:
      folder: made if absent; files of an earlier page are replaced.
      study: the tables and matchings.
      report: the numbers of the same study (`harmonic_jax.metrics.consistency.report`).
      images: where pictures of the worst cases come from; None: boxes on a blank ground.
      title: of the page.
      pngs: write the figures and the worst cases as PNGs too.

    Returns:
      The files written, the page first.

    Raises:
      OSError: a file cannot be written.
      ValueError: `images` gives something that is no uint8 RGB image.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = images or Images()
    drawn = (
        density_figure(study, report),
        reliability_figure(report),
        headroom_figure(report),
        curves_figure(report),
        classes_figure(report),
        errors_figure(report),
    )
    figures = [figure for figure in drawn if figure is not None]
    groups = worst_cases(study)
    pictures = take_pictures(groups, images)
    names = study.truth.class_names
    html = page_html(title, report, figures, groups, pictures, images, names)
    files = [folder / PAGE]
    for name in PNGS:  # one that this report has no use for must not stay
        (folder / name).unlink(missing_ok=True)
    # Names may hold control characters, and what UTF-8 cannot say.
    write_text(files[0], printable(html))
    if not pngs:
        return files
    for figure in figures:
        files.append(folder / f"{figure.name}.png")
        save_figure(files[-1], figure)
    if any(picture.pixels is not None for row in pictures for picture in row):
        files.append(folder / CONTACT_SHEET)
        save_contact_sheet(files[-1], first_of_groups(pictures, _OF_EACH_GROUP), names)
    return files
