"""The page as a file: whole, self-contained, safe whatever names say, small whatever comes."""

import base64
import hashlib
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from harmonic_jax.metrics.at_score import class_table, confusion_table
from harmonic_jax.metrics.consistency import METRICS
from harmonic_jax.report import Images, write_page
from harmonic_jax.report.plots import DARK, LIGHT
from harmonic_jax.terminal import printable
from tests.report.studies import (
    NASTY,
    NO_DETECTIONS,
    drawn,
    gray_image,
    studied,
    tables,
    truth_of,
)

VOID = {"meta", "input", "br", "link", "img", "base"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Page(HTMLParser):
    """Elements in order; every one must be closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def written(folder: Path, *args: Any, **options: Any) -> str:
    (file,) = write_page(folder, *args, **options, pngs=False)
    return file.read_text("utf-8")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every section there is, with names as nasty as can be."""
    case, report = drawn()
    names = {
        i: f'"><img src=x onerror=alert(2)> {chr(0xDC80)}\x1b[31m\u202e.jpg'
        for i in range(0, 1000, 10)
    }
    report = report | {"settings": report["settings"] | {"notes": ["<b onclick=alert(3)>"]}}
    report["at_score"] = class_table(case.truth, case.found)
    report["confusion"] = confusion_table(case)
    report["slices"] = [{"slice": NASTY, "images": 3, "AP": None, "AP_low": None}]
    images = Images(gray_image, names)
    folder = tmp_path_factory.mktemp("page") / "new"
    return write_page(folder, case, report, images, title="</title><b>")


@pytest.fixture(scope="session")
def page(files: list[Path]) -> str:
    return files[0].read_text("utf-8")


def test_names_stay_text(page: str) -> None:
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 1
    assert tags.count("img") == 0
    assert not any(key.startswith("on") for _, attrs in parsed.elements for key in attrs)
    assert parsed.texts["title"][0] == "</title><b>"
    assert printable(page) == page
    for place in ("option", "th", "text", "p"):
        assert any("alert" in text for text in parsed.texts[place]), place
    assert NASTY in parsed.texts["option"]
    assert NASTY in [text.strip() for text in parsed.texts["th"]]


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    elements = Page(page).elements
    addresses = {"src", "href", "xlink:href", "action", "poster", "srcset"}
    links = [value or "" for _, attrs in elements for k, value in attrs.items() if k in addresses]
    assert len(links) > 20
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs.get("aria-describedby", ids[0]) for _, attrs in elements} <= set(ids)
    inside = {f"#{name}" for name in ids}
    assert all(link in inside or link.startswith("data:image/jpeg") for link in links)
    assert set(re.findall(r"url\(([^)]*)", page)) <= inside
    assert not {"link", "base", "iframe", "object", "form"} & {tag for tag, _ in elements}
    assert not re.search(r"https?:|@import", page)


def test_the_policy_allows_exactly_the_page_s_own_style_and_script(page: str) -> None:
    elements = Page(page).elements
    (policy,) = [attrs["content"] for tag, attrs in elements if "http-equiv" in attrs]
    assert policy is not None
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in elements)
    drawings = [attrs for tag, attrs in elements if tag == "svg"]
    assert len(drawings) > 30
    for attrs in drawings:
        named = attrs.get("role") == "img" and attrs.get("aria-label")
        assert named or attrs.get("aria-hidden") == "true"


def test_numbers_and_boxes_stand_on_the_page(page: str) -> None:
    case, report = drawn()
    for name in ("AP", "spearman", "mean_gap", "nms_mean_loss", "AP_headroom"):
        entry = report["overall"][name]
        low, high = entry["interval"]
        for tag in ("b", "td"):
            start = f"<{tag}>{entry['value']:.3f}"
            assert re.search(rf"{start}(</b>)?<small>{low:.3f} to {high:.3f}</small>", page), name
    words = " ".join(page.split())
    apart = np.abs(case.pairs.score - case.pairs.iou) > 0.2
    assert f"Of {len(apart)} boxes {apart.sum()} ({100 * apart.mean():.0f} %) are further" in words
    assert re.search(
        r"On average, scores are 0\.\d{3} above the IoUs of their boxes\. LaECE", words
    )
    worst = max((e["value"], name) for name, e in report["overall"].items() if name[:4] == "dAP_")
    title = METRICS[worst[1]].title
    assert f"“{title}”: without it AP50 would be higher by {worst[0]:.3f} (" in words
    shot = re.findall(r'<svg class="shot".*?</svg>', page, flags=re.DOTALL)[0]
    width, height = re.findall(r'viewBox="0 0 (\d+) (\d+)"', shot)[0]
    assert f'<image width="{width}" height="{height}" href="data:image/jpeg' in shot
    (box,) = re.findall(r'class="box found" d="M(\S+) (\S+?)H(\S+?)V(\S+?)H', shot)
    x1, y1, x2, y2 = map(float, box)
    sides = case.found.boxes[:, 2:] - case.found.boxes[:, :2]
    assert np.abs(sides - [x2 - x1, y2 - y1]).max(axis=1).min() < 0.11


def test_files(files: list[Path], tmp_path: Path, monkeypatch: Any) -> None:
    assert [file.name for file in files] == [
        "consistency.html", "score_iou.png", "reliability.png", "head_room.png",
        "precision_recall.png", "classes.png", "errors.png", "confusion.png", "worst_cases.png",
    ]  # fmt: skip
    for file in files[1:]:
        image = cv2.imread(str(file))
        assert min(image.shape[:2]) > 150, file
        assert image.std() > 5, file
    assert sorted(files[0].parent.iterdir()) == sorted(files)

    monkeypatch.setattr("harmonic_jax.report.page.make_charts", lambda *args: {})
    (tmp_path / "errors.png").touch()
    files = write_page(tmp_path, *drawn(), pngs=False)
    assert list(tmp_path.iterdir()) == files  # no picture of an earlier report


@pytest.mark.parametrize(
    "what", ["no detections", "no objects", "one class", "any scores", "no images"]
)
def test_a_page_of_little(tmp_path: Path, what: str) -> None:
    """What cannot be shown is left out or said; nothing breaks, and warnings are errors here."""
    truth, found, raw = tables(names=("cat",) if what == "one class" else ("cat", "dog"))
    options: dict[str, Any] = {"resamples": 0}
    if what == "no detections":
        found, raw = NO_DETECTIONS, None
    if what == "no objects":
        truth = truth_of(truth.image_ids, [], [], [], truth.class_names)
    if what == "no images":
        truth, found, raw = truth_of([], [], [], [], truth.class_names), NO_DETECTIONS, None
    if what == "any scores":
        found = type(found)(found.image_id, found.boxes, found.scores * 60 - 30, found.labels)
        raw, options = None, {}
    text = written(tmp_path, *studied(truth, found, raw, **options))
    parsed = Page(text)
    words = " ".join(part for parts in parsed.texts.values() for part in parts)
    assert "nan" not in words.lower().split()
    assert "None" not in words
    sections = parsed.texts["h2"]
    assert "Scores and boxes" in sections
    assert ("Classes" in sections) == (what in ("no detections", "any scores"))
    assert ("Reliability" in sections) == (what != "any scores")
    has_cases = "data-label" in text
    assert has_cases == (what != "no images")
    assert ("blank ground" in words) == has_cases == ('<rect class="blank"' in text)


def test_a_page_stays_small(tmp_path: Path, monkeypatch: Any) -> None:
    """Many classes with long names, and pictures that no JPEG makes small."""
    names = tuple(f"{'class ' * 8}{i}" for i in range(200))
    case, report = studied(*tables(images=200, names=names), resamples=0)
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    text = written(tmp_path, case, report, Images(lambda image_id: noise))
    assert 1_000_000 < len(text) < 8_000_000
    assert re.search(r"the 40 of \d+ classes with the lowest AP", text)
    assert text.count(f"{names[7]}</th>") == 1

    monkeypatch.setattr("harmonic_jax.report.page.make_charts", lambda *args: {})
    monkeypatch.setattr("harmonic_jax.report.page.MOST_BYTES", 300_000)
    text = written(tmp_path, case, report, Images(lambda image_id: noise))
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert 0 < sum(map(len, uris)) <= 300_000
    shots = text.count('class="shot"')
    assert f"{shots - len(uris)} pictures are boxes on a blank ground" in text


def test_pixels_that_are_no_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image \d+ is float64 .*uint8"):
        write_page(tmp_path, *drawn(), Images(lambda i: np.zeros((5, 5, 3))))


# Looks at the page from outside, in a frame as wide as a phone, with everything opened.
PROBE = """<!doctype html><iframe src="consistency.html" style="width:360px;height:700px;border:0">
</iframe><pre></pre><script>
window.onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const count = (query, is_seen) => [...page.querySelectorAll(query)].filter(is_seen).length;
  const shown = () => count(".shots figure", figure => figure.offsetWidth);
  const styles = query => frame.contentWindow.getComputedStyle(page.querySelector(query));
  for (const part of page.querySelectorAll("details")) part.open = true;
  const root = page.documentElement, result = [root.scrollWidth - root.clientWidth, shown(),
    count("section svg.chart", svg => svg.getBoundingClientRect().height > 20)];
  for (const theme of ["light", "dark"]) {
    page.getElementById(theme).click();
    result.push(styles("body").backgroundColor, styles(".chart text").fill);
  }
  const choice = page.getElementById("class");
  choice.value = choice.options[1].value;
  choice.dispatchEvent(new Event("change"));
  document.querySelector("pre").textContent = [choice.offsetWidth, shown(), ...result].join("|");
};
</script>"""


def test_in_a_browser(tmp_path: Path, page: str) -> None:
    """It complains of nothing, fits a phone, and its charts have the colours that are chosen."""
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        pytest.skip("needs a browser: chromium, as a package of most systems")
    (tmp_path / "consistency.html").write_text(page)
    (tmp_path / "probe.html").write_text(PROBE + "<script>console.error('seen')</script>")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking",
            "--allow-file-access-from-files", "--dump-dom", f"file://{tmp_path}/probe.html",
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(complaints) == 1  # the one that shows that complaints are seen
    assert "probe.html" in complaints[0]
    (text,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    choice, some, overflow, shots, charts, *colors = unescape(text).split("|")
    assert int(overflow) == 0
    assert int(charts) > 10
    assert int(choice) > 0
    assert 0 < int(some) < int(shots)
    expected = [scheme[name] for scheme in (LIGHT, DARK) for name in ("paper", "muted")]
    rgb = [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in expected]
    assert [tuple(map(int, re.findall(r"\d+", color))) for color in colors] == rgb
