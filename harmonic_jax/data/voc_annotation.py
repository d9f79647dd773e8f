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
_FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "no", "", "none", "unspecified"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}


class AnnotationError(ValueError):
    """A file that is no annotation of VOC's; the message says what to change."""


class VocObject(NamedTuple):
    """A box of an `<object>`.

    Attributes:
      class_name: empty where the object has none, or several.
      corners: xmin, ymin, xmax, ymax as written.
      is_difficult: VOC's flag.
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
      objects: in their order, one for each box.
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
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(f"more than {MAX_BYTES} bytes")
    root = _parse(data)
    for element in root.iter():
        if "}" in element.tag or not element.tag.islower():
            element.tag = element.tag.rpartition("}")[2].lower()
    size, stated = _size(root)
    objects = tuple(_objects(root))
    if root.tag != "annotation" and not objects and root.find("size") is None:
        raise AnnotationError(f"its root is <{root.tag[:40]}>, not <annotation>")
    return VocAnnotation(size, stated, objects)


class _RefuseDoctype(ET.TreeBuilder):
    """VOC files declare no document type, and only one can define entities that grow or read files.

    Python's parser fetches no external entity by itself; refusing the declaration also rules out
    internal ones that expand without end.
    """

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise AnnotationError(f"declares a document type, {name[:40]!r}: delete <!DOCTYPE ..>")


def _parse(data: bytes) -> ET.Element:
    """The root of a file in the encoding that its first bytes or its declaration name, else UTF-8.

    Expat itself knows few encodings.
    """
    declared = _DECLARED.match(data, 0, 1000)
    encoding = declared[1].decode() if declared else "utf-8"
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), encoding)
    parser = ET.XMLParser(target=_RefuseDoctype(), encoding="utf-8")
    try:
        return ET.fromstring(data.decode(encoding).encode(), parser)
    except ET.ParseError as error:
        raise AnnotationError(str(error)) from error
    except (LookupError, UnicodeError) as error:
        raise AnnotationError(
            f"{error}; declare the encoding that it has, or save it as UTF-8"
        ) from error


def _size(root: ET.Element) -> tuple[tuple[int, int] | None, str]:
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    height, width = map(_side, texts)
    if height and width:
        return (height, width), ""
    stated = " x ".join(text[:20] or "nothing" for text in reversed(texts))
    return None, f"<size> is {stated}" if any(texts) else "no <size>"


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
    fault = "" if name else f"{len(names)} names in one <object>" if names else "no <name>"
    flag = (element.findtext("difficult") or "").strip()
    is_difficult = _FLAGS.get(flag.lower())
    if is_difficult is None:
        fault = fault or f"<difficult> is {flag[:40]!r}, neither 0 nor 1"
    boxes = element.findall("bndbox")
    if not boxes:
        fault = fault or "no <bndbox>"
        yield VocObject(name, (), bool(is_difficult), fault)
    for box in boxes:
        corners, bad = _corners(box)
        yield VocObject(name, corners, bool(is_difficult), fault or bad)


def _corners(box: ET.Element) -> tuple[tuple[float, ...], str]:
    """The four numbers; or why there are not four."""
    tags = [child.tag for child in box]
    corners = []
    for key in _CORNERS:
        if tags.count(key) != 1:
            return (), f"{tags.count(key) or 'no'} <{key}> in its <bndbox>"
        text = (box.findtext(key) or "").strip()
        value = _number(text)
        if value is None:
            return (), f"<{key}> is {text[:40]!r}, not a number such as 9.5"
        corners.append(value)
    return tuple(corners), ""


def _number(text: str) -> float | None:
    """The number written, which may be NaN or infinite; None for anything else."""
    try:
        return None if "_" in text else float(text)  # Python's own would take 1_000
    except ValueError:
        return None
