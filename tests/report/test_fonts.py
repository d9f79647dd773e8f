"""Names in any script on pictures: letters where a font has them, their numbers where none has."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from harmonic_jax.report import fonts
from harmonic_jax.report.boxes import LabelledBoxes, draw_objects, text_mask
from harmonic_jax.report.fonts import BASE, drawable, font_families
from harmonic_jax.report.plots import chart_style, new_axes, save_panels, set_rows, svg_of

CAT = "\u732b"  # a letter of Chinese and Japanese


def write_font(path: Path, letters: str) -> None:
    """A font in which every one of some letters is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):x}" for c in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of whose fonts this test decides; it has none but matplotlib's own."""

    def found() -> list[str]:
        return [str(path) for path in tmp_path.glob("*.ttf")]

    monkeypatch.setattr(font_manager, "findSystemFonts", found)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    monkeypatch.setattr(fonts, "_families", [BASE])
    monkeypatch.setattr(fonts, "_has", {})
    fonts._system_fonts.cache_clear()
    text_mask.cache_clear()
    yield tmp_path
    fonts._system_fonts.cache_clear()
    text_mask.cache_clear()


def test_a_font_of_the_system_is_used(system: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_font(system / "squares.ttf", CAT)
    (system / "broken.ttf").write_bytes(b"no font")
    write_font(system / "another.ttf", "\u0e41")
    assert font_families([f"a {CAT}"]) == [BASE, "Squares"]
    assert drawable(f"a {CAT}") == f"a {CAT}"
    mask = text_mask(CAT, 20)
    assert mask.shape[1] == pytest.approx(0.8 * 20 + 7, abs=2)
    assert mask[8:18, 6:16].min() == 1.0  # the black square, not the outline of a missing letter
    assert not caplog.records


def test_what_no_font_has_is_drawn_as_its_number(
    system: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    names = [f"{CAT}\u3068\u72ac", "\uac15", "\u0e41", "\u041a\u043e\u0448\u043a\u0430"]
    image = np.zeros((200, 400, 3), np.uint8)
    rows = np.array([[5.0, 40 * i + 30, 90, 40 * i + 50] for i in range(4)])
    objects = LabelledBoxes(rows, np.arange(4))
    drawn = draw_objects(image, objects, names)
    spelled = ["\\u732b\\u3068\\u72ac", "\\uac15", "\\u0e41", names[3]]
    np.testing.assert_array_equal(drawn, draw_objects(image, objects, spelled))
    narrow = draw_objects(image[:60, :50], objects, ["a long name" * 9] * 4)
    assert (narrow[12:28, 2:48] != 0).any(axis=2).mean() > 0.9  # cut, not left out
    told = "".join(record.getMessage() for record in caplog.records)
    assert all(told.count(letter) == 1 for letter in "".join(names[:3]))
    assert names[3][0] not in told  # DejaVu has Cyrillic letters
    assert "fonts-noto-cjk" in told


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("e\x1b[31m", "e\\x1b[31m"),
        ("two\nlines\t!", "two lines !"),
        ("\udcff", "\\udcff"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u200d\ufe0fb", "ab"),
        ("\U0001f436", "\\u1f436"),
        ("[/red] $x_{2}$ <b>", "[/red] $x_{2}$ <b>"),
        ("\u0642\u0637\u0629", "\u0642\u0637\u0629"),
    ],
)
def test_signs_that_are_no_letters(system: Path, name: str, drawn: str) -> None:
    shown = drawable(name)
    assert shown.replace("\u200d", "").replace("\ufe0f", "") == drawn
    assert text_mask(name, 13).max() > 0.9


def test_charts_use_the_same_letters(system: Path, tmp_path: Path) -> None:
    """pytest makes an error of matplotlib's warning of a missing glyph."""

    def svg_with(name: str, png: Path | None = None) -> str:
        with chart_style([name]):
            axes = new_axes(name, height=2.0)
            set_rows(axes, [name, f"b {name}"])
            svg = svg_of(axes, "", "")
            if png is not None:
                save_panels(png, [axes])
        return svg

    assert svg_with(CAT, tmp_path / "a.png").count(f">{CAT}</text>") == 2  # its reader's fonts
    svg_with("\\u732b", tmp_path / "b.png")
    np.testing.assert_array_equal(*(cv2.imread(str(tmp_path / f"{n}.png")) for n in "ab"))
    names = {"$x_{2}$": "$x_{2}$", "\udcff": "\\udcff", "\x1b\0": "\\x1b\\x00", "\uffff": "\\uffff"}
    for name, text in names.items():
        assert f">{text}</text>" in svg_with(name)
