"""Letters of any script on pictures: the fonts of the system that have them, or their numbers.

Matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic and Hebrew letters and many
signs. Others are looked for among the system's fonts, once. Letters that no font has are drawn as
their code points, never as empty squares, and that is said.
"""

import functools
import logging
import threading
import unicodedata
from collections.abc import Iterable

from harmonic_jax.terminal import printable

BASE = "DejaVu Sans"
_LOG = logging.getLogger(__name__)
_LOCK = threading.Lock()
_families = [BASE]  # and those that were needed besides
_has: dict[str, bool] = {}  # the letters that were looked for


def font_families(texts: Iterable[str]) -> list[str]:
    """Names of font families for matplotlib, which takes each letter from the first that has it;
    all letters of the texts that any font has are among them."""
    with _LOCK:
        letters = {letter for text in texts for letter in printable(text)} - _has.keys()
        if letters:
            _look_for(letters)
        return list(_families)


def drawable(text: str) -> str:
    r"""A text of one line without the letters that no font has: their numbers instead.

    >>> drawable("caf\u00e9\t\x1b \U0010fffd")
    'café \\x1b \\U0010fffd'
    """
    font_families([text])
    return "".join(map(_drawable, printable(text)))


def _drawable(letter: str) -> str:
    if letter in "\n\t":
        return " "
    if _has[letter]:
        return letter
    return "" if _is_invisible(letter) else f"\\u{ord(letter):04x}"


def _look_for(letters: set[str]) -> None:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    missing = letters - _letters_in(font_manager.findfont(BASE), letters)
    visible = {letter for letter in missing if not _is_invisible(letter)}
    for path in _system_fonts() if visible else ():
        found = _letters_in(path, missing)
        if found & visible:
            font_manager.fontManager.addfont(path)
            _families.append(FT2Font(path).family_name)
            missing, visible = missing - found, visible - found
        if not visible:
            break
    _has.update({letter: letter not in missing for letter in letters})
    if visible:
        _LOG.warning(
            "no font of this system has the letters %s: they are drawn as their numbers. Install "
            "one that has them, such as Noto's (apt install fonts-noto-core fonts-noto-cjk)",
            "".join(sorted(visible)[:20]),
        )


def _is_invisible(letter: str) -> bool:
    """Joiners, directions, variation selectors: nothing is lost where a font has none."""
    return unicodedata.category(letter) in ("Cf", "Zs", "Cc") or "\ufe00" <= letter <= "\ufe0f"


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Files of fonts, plain ones first."""
    from matplotlib import font_manager

    odd = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed")

    def plainness(path: str) -> tuple[int, str]:
        return sum(word in path.lower() for word in odd), path.lower()

    return tuple(sorted(font_manager.findSystemFonts(), key=plainness))


def _letters_in(path: str, letters: set[str]) -> set[str]:
    """Those letters that a font has an outline for; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        found = {letter for letter in letters if font.get_char_index(ord(letter))}
        if found:  # fonts of pictures (colour emoji) have no outlines
            font.set_size(16, 72)
            font.load_char(ord(min(found, key=_is_invisible)))
            font.get_path()
    except (RuntimeError, OSError, ValueError):
        return set()
    return found
