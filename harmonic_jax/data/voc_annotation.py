"""One annotation file of PASCAL VOC's layout: its bytes -> objects, or why not."""

import codecs
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harmonic_jax.coco_format.values import clean_name

MAX_BYTES = 2**23  # 30,000 objects; the tree can take a hundred times as much
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# But those that Python decodes in quadratic time.
_DECLARED = re.compile(
    rb"""\s*<\?xml[^>]*?encoding\s*=\s*["'](?!(?i:idna|punycode))([A-Za-z][\w.:-]{0,39})["']"""
)
_TRUE = ("1", "1.0", "true", "yes")
_FALSE = ("0", "0.0", "false", "no", "", "none", "unspecified")


class AnnotationError(ValueError):
    """A file that is no annotation of VOC's; the message says why."""


class VocObject(NamedTuple):
    """A box of an `<object>`.

    Attributes:
      class_name: empty where the object has none, or several.
      corners: xmin, ymin, xmax, ymax as written.
      fault: why it cannot be used; empty where it can.
    """

    class_name: str
    corners: tuple[float, ...]
    is_difficult: bool
    fault: str


class VocAnnotation(NamedTuple):
    """An image's size and objects.

    Attributes:
      size: height and width; None where the file does not state them as pixels, 1 to 2**31 - 1.
      stated: what it states instead, for a message.
    """

    size: tuple[int, int] | None
    stated: str
    objects: tuple[VocObject, ...]


def read_annotation(path: Path) -> VocAnnotation:
    """Reads a file in the encoding that it declares, whatever namespace its elements are in.

    Raises:
      AnnotationError: it cannot be read, is not XML in its encoding, or declares a document type.
    """
    try:
        root = _parse(path)
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror}") from error
    except (LookupError, ValueError, ET.ParseError) as error:
        raise AnnotationError(str(error)) from error
    for element in root.iter():
        if "}" in element.tag or not element.tag.islower():
            element.tag = element.tag.rpartition("}")[2].lower()
    objects = tuple(_objects(root))
    if root.tag != "annotation" and not objects and root.find("size") is None:
        raise AnnotationError(f"its root is <{root.tag[:40]}>, not <annotation>")
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    width, height = map(_side, texts)
    stated = "<size> is " + " x ".join(text[:20] for text in texts) if any(texts) else "no <size>"
    return VocAnnotation((height, width) if height and width else None, stated, objects)


class _RefuseDoctype(ET.TreeBuilder):
    """VOC files declare no document type, and only one can define entities that grow or read files.

    Python's parser fetches no external entity by itself; refusing the declaration also rules out
    internal ones that expand without end.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"declares a document type, {name[:40]!r}: delete <!DOCTYPE ..>")


def _parse(path: Path) -> ET.Element:
    """The root of a file in the encoding that its first bytes or its declaration name, else UTF-8.

    Expat itself knows few encodings.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    declared = _DECLARED.match(data, 0, 1000)
    encoding = declared[1].decode() if declared else "utf-8"
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), encoding)
    parser = ET.XMLParser(target=_RefuseDoctype(), encoding="utf-8")
    return ET.fromstring(data.decode(encoding).encode(), parser)


def _side(text: str) -> int:
    """A number of pixels; 0 for what is none."""
    value = _number(text)
    return int(value) if value and 1 <= value < 2**31 and value.is_integer() else 0


def _objects(root: ET.Element) -> Iterator[VocObject]:
    """The boxes of all objects, in their order: of the parts of an object there are none.

    Tools nest them (`<objects><object>`). Not recursive: files may nest as deeply as they like.
    """
    waiting = [root]
    while waiting:
        element = waiting.pop()
        if element.tag == "object":
            yield from _boxes(element)
        elif element.tag == "bndbox":
            yield VocObject("", (), False, "a <bndbox> outside of an <object>")
        else:
            waiting.extend(reversed(element))


def _boxes(element: ET.Element) -> Iterator[VocObject]:
    """An object for each `<bndbox>` of an `<object>`; one with a fault where there is none."""
    names = {clean_name(found.text or "") for found in element.findall("name")} - {""}
    name = names.pop() if len(names) == 1 else ""
    flag = (element.findtext("difficult") or "").strip().lower()
    fault = ""
    if not name:
        fault = f"{len(names)} names in one <object>" if names else "no <name>"
    elif flag not in _TRUE + _FALSE:
        fault = f"<difficult> is {flag[:40]!r}, neither 0 nor 1"
    boxes = element.findall("bndbox")
    if not boxes:
        yield VocObject(name, (), flag in _TRUE, fault or "no <bndbox>")
    for box in boxes:
        corners, bad = _corners(box)
        yield VocObject(name, corners, flag in _TRUE, fault or bad)


def _corners(box: ET.Element) -> tuple[tuple[float, ...], str]:
    """The four numbers; or why there are not four."""
    corners = []
    for key in _CORNERS:
        texts = [(child.text or "").strip() for child in box.findall(key)]
        value = _number(texts[0]) if len(texts) == 1 else None
        if value is None:
            told = ", ".join(texts)[:40]
            return (), f"<{key}> is {told!r}, not a number such as 9.5"
        corners.append(value)
    return tuple(corners), ""


def _number(text: str) -> float | None:
    """The number written, which may be NaN or infinite; None for anything else."""
    try:
        return None if "_" in text else float(text)  # Python's own would take 1_000
    except ValueError:
        return None
