"""The page as a file: whole, self-contained, safe whatever names say, small whatever comes."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from harmonic_jax.report import Images, write_page
from harmonic_jax.terminal import printable
from tests.report.tables import IMAGE_SIZE, NASTY, none_of, studied, tables

VOID = {"meta", "input", "br", "link", "img", "base"}


class Page(HTMLParser):
    """Elements in order, with what is open at the end or closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def gray_image(image_id: int) -> np.ndarray:
    return np.full((*IMAGE_SIZE, 3), 40 + image_id % 200, np.uint8)


def written(folder: Path, *args: Any, **options: Any) -> str:
    (file,) = write_page(folder, *args, **options, pngs=False)
    return file.read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every section there is, with names as nasty as can be."""
    case, report = studied(*tables())
    names = {
        i: f'"><img src=x onerror=alert(2)> {chr(0xDC80)}\x1b[31m\u202e.jpg'
        for i in range(0, 300, 10)
    }
    report["settings"]["notes"] = ["<b onclick=alert(3)>"]
    images = Images(gray_image, names)
    return written(tmp_path_factory.mktemp("page"), case, report, images, title="</title><b>")


def test_every_element_is_closed(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.wrong == []


def test_names_stay_text(page: str) -> None:
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 1
    assert tags.count("img") == 0
    assert not any(key.startswith("on") for _, attrs in parsed.elements for key in attrs)
    assert parsed.texts["title"][0] == "</title><b>"
    assert printable(page) == page
    for place in ("option", "th", "summary", "text", "p"):
        assert any("alert" in text or "</title>" in text for text in parsed.texts[place]) == (
            place in ("option", "th", "p", "text")
        ), place
    assert NASTY in parsed.texts["option"]
    assert NASTY in parsed.texts["th"]


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    links = [
        value
        for _, attrs in parsed.elements
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href", "action", "poster", "srcset")
    ]
    assert len(links) > 20
    assert all(value is not None and value.startswith("data:image/jpeg") for value in links)
    assert not {"link", "base", "iframe", "object", "form"} & {tag for tag, _ in parsed.elements}
    assert "http:" not in page
    assert "https:" not in page
    assert re.findall(r"@import|url\((?!#hatch)", page) == []


def test_the_policy_allows_exactly_the_page_s_own_style_and_script(page: str) -> None:
    parsed = Page(page)
    (policy,) = [
        attrs["content"]
        for tag, attrs in parsed.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in parsed.elements)


def test_drawings_have_words_and_ids_are_unique(page: str) -> None:
    parsed = Page(page)
    drawings = [attrs for tag, attrs in parsed.elements if tag == "svg"]
    assert len(drawings) > 30
    for attrs in drawings:
        named = attrs.get("role") == "img" and len(attrs.get("aria-label") or "") > 3
        assert named or attrs.get("aria-hidden") == "true"
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_numbers_stand_on_the_page_with_their_intervals(page: str) -> None:
    _, report = studied(*tables())
    for name in ("AP", "spearman", "mean_gap", "nms_mean_loss", "AP_headroom"):
        entry = report["overall"][name]
        low, high = entry["interval"]
        tile = f"<b>{entry['value']:.3f}</b><small>{low:.3f} to {high:.3f}</small>"
        cell = f"<td>{entry['value']:.3f}<small>{low:.3f} to {high:.3f}</small></td>"
        assert tile in page, name
        assert cell in page, name


def test_files(tmp_path: Path) -> None:
    case, report = studied(*tables())
    files = write_page(tmp_path / "new", case, report, Images(gray_image))
    assert files == [
        tmp_path / "new" / name
        for name in (
            "consistency.html", "score_iou.png", "reliability.png", "head_room.png",
            "precision_recall.png", "classes.png", "errors.png", "worst_cases.png",
        )
    ]  # fmt: skip
    for file in files[1:]:
        image = cv2.imread(str(file))
        assert min(image.shape[:2]) > 150, file
        assert image.std() > 5, file
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)

    write_page(tmp_path / "new", case, report, pngs=False)
    assert list((tmp_path / "new").iterdir()) == files[:1]  # no picture of an earlier report


@pytest.mark.parametrize(
    "what", ["no detections", "no objects", "one class", "any scores", "no images"]
)
def test_a_page_of_little(tmp_path: Path, what: str) -> None:
    """What cannot be shown is left out or said; nothing breaks, and warnings are errors here."""
    truth, found, raw = tables(names=("cat",) if what == "one class" else ("cat", "dog"))
    options: dict[str, Any] = {"resamples": 0}
    if what == "no detections":
        found, raw = none_of(truth), None
    if what == "no objects":
        truth = type(truth)(
            truth.image_ids, [], np.zeros((0, 4)), [], [], [], [], truth.class_names, (1, 2)
        )
    if what == "no images":
        truth = type(truth)([], [], np.zeros((0, 4)), [], [], [], [], truth.class_names, (1, 2))
        found, raw = none_of(truth), None
    if what == "any scores":
        found = type(found)(found.image_id, found.boxes, found.scores * 60 - 30, found.labels)
        raw, options = None, {}
    case, report = studied(truth, found, raw, **options)
    parsed = Page(written(tmp_path, case, report))
    assert parsed.open == []
    assert parsed.wrong == []
    text = " ".join(part for parts in parsed.texts.values() for part in parts)
    assert "nan" not in text.lower().split()
    assert "None" not in text
    sections = parsed.texts["h2"]
    assert "Scores and boxes" in sections
    assert ("Classes" in sections) == (what in ("no detections", "any scores"))
    assert ("Reliability" in sections) == (what != "any scores")
    has_cases = any(tag == "figure" and "data-label" in attrs for tag, attrs in parsed.elements)
    assert has_cases == (what != "no images")
    assert ("blank ground" in text) == has_cases


def test_a_page_stays_small(tmp_path: Path) -> None:
    """Many classes with long names, and pictures that no JPEG makes small."""
    names = tuple(f"{'class ' * 8}{i}" for i in range(200))
    case, report = studied(*tables(images=200, names=names), resamples=0)
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    text = written(tmp_path, case, report, Images(lambda image_id: noise))
    assert 1_000_000 < len(text) < 8_000_000
    assert re.search(r"the 40 of \d+ classes with the lowest AP", text)
    assert text.count(f"{names[7]}</th>") == 1


def test_the_budget_of_pictures_is_kept_and_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("harmonic_jax.report.document.MOST_BYTES", 30_000)
    case, report = studied(*tables())
    noise = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    text = written(tmp_path, case, report, Images(lambda image_id: noise))
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert 0 < sum(map(len, uris)) <= 30_000
    shots = text.count('class="shot"')
    assert f"{shots - len(uris)} pictures are boxes on a blank ground" in text


def test_pixels_that_are_no_image_are_refused(tmp_path: Path) -> None:
    case, report = studied(*tables())
    with pytest.raises(ValueError, match=r"image \d+ is float64 .*uint8"):
        write_page(tmp_path, case, report, Images(lambda i: np.zeros((5, 5, 3))))
