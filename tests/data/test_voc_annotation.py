"""Annotations of VOC's layout as tools and systems write them."""

from pathlib import Path

import pytest

from harmonic_jax.data.report import Reason
from harmonic_jax.data.voc_annotation import MAX_BYTES, AnnotationError, read_annotation
from tests.data.coco_folder import counts
from tests.data.voc_folder import SIZE, read, thing, write

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"

# Python's parser takes the first; the others would grow without end, or read a file.
SPY = '<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><annotation>&x;</annotation>'
LEVELS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
DOCTYPES = (
    f"<!DOCTYPE annotation><annotation>{SIZE}{thing()}</annotation>",
    f'<!DOCTYPE a [<!ENTITY e0 "lol">{LEVELS}]><annotation>&e11;</annotation>',
    SPY,
    SPY.encode("utf-16"),  # a declaration that a search for its bytes would miss
)


def add(root: Path, data: bytes | str) -> None:
    """A folder of a sound image, and one with these bytes as its annotation."""
    write(root, {"good": SIZE + thing(), "a": None})
    data = data.encode() if isinstance(data, str) else data
    (root / "Annotations" / "a.xml").write_bytes(data)


def classes(root: Path) -> list[str]:
    source = read(root)
    return [source.class_names[label] for label in source.records[1].labels]


@pytest.mark.parametrize(
    ("encoding", "declared", "name"),
    [
        ("utf-8", "", "猫"),
        ("utf-8-sig", "gb2312", "猫"),  # the mark at the start cannot be there by chance
        ("utf-16", "utf-8", "猫"),
        ("gb2312", "gb2312", "猫"),
        ("gb18030", "gb18030", "龍"),
        ("shift_jis", "Shift_JIS", "ネコ"),
        ("latin-1", "ISO-8859-1", "Größe"),
        ("cp1252", "windows-1252", "“cat”"),
    ],
)
def test_the_declared_encoding_is_read(
    tmp_path: Path, encoding: str, declared: str, name: str
) -> None:
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    add(tmp_path, f"{head}<annotation>{SIZE}{thing(name)}</annotation>".encode(encoding))
    assert classes(tmp_path) == [name]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "no element found: line 1"),
        ("<annotation>\n<path>C:\\R&D</path></annotation>", "(invalid token): line 2, column 12"),
        ("\n<?xml version='1.0'?><annotation/>", "declaration not at start of entity: line 2"),
        ("<annotation>&nbsp;</annotation>", "undefined entity: line 1"),
        ("<?xml version='1.0' encoding='utf-8'?>\n<a>Gr\xf6\xdfe</a>".encode("latin-1"),
         "'utf-8' codec can't decode byte 0xf6"),
        ("<?xml version='1.0' encoding='gb2312'?><a>猫</a>", "'gb2312' codec can't decode byte"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "unknown encoding: klingon"),
        ("<?xml version='1.0' encoding='zlib'?><annotation/>", "'zlib' is not a text encoding"),
        (b"<?xml version='1.0' encoding='utf-7'?><a>+2AA-</a>", "surrogates not allowed"),
        ("<html><body/></html>", "its root is <html>, not <annotation>"),
        *((text, "declares a document type") for text in DOCTYPES),
        ("<a>" * (MAX_BYTES // 256), "no element found: line 1"),
        (b" " * (MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
    ],
)  # fmt: skip
def test_what_is_no_annotation_says_why(tmp_path: Path, data: bytes | str, reason: str) -> None:
    add(tmp_path, data)
    source = read(tmp_path)
    assert counts(source) == {Reason.UNREADABLE_ANNOTATION: 1}
    (example,) = source.report.examples(Reason.UNREADABLE_ANNOTATION)
    assert example.startswith("a.xml: ")
    assert reason in example


@pytest.mark.parametrize(
    "content",
    [
        f"<annotation>{SIZE}<objects>{thing()}</objects></annotation>",
        f'<annotation xmlns="http://example.org/voc">{SIZE}{thing()}</annotation>',
        f'<annotation xmlns:v="u">{SIZE}{thing().replace("object>", "v:object>")}</annotation>',
        f"<Annotation>{SIZE}{thing().replace('object>', 'Object>')}</Annotation>",
        f"<root>{SIZE}{thing()}</root>",
        f"<!-- made by hand --><annotation>{SIZE}{thing()}<?x y?></annotation>",
        "<annotation>" + SIZE + thing(box=(" 1 ", "\n2\n", "10\t", "20.0")) + "</annotation>",
        "<annotation>" + SIZE + thing(" \n cat\t") + "</annotation>",
    ],
)
def test_shapes_that_can_only_mean_one_thing_are_read(tmp_path: Path, content: str) -> None:
    add(tmp_path, content)
    source = read(tmp_path)
    assert classes(tmp_path) == ["cat"]
    assert source.records[1].boxes.tolist() == [[0, 1, 10, 20]]
    assert not source.report.findings


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (f"<object>{BOX}</object>", "object: no <name>"),
        (f"<object><name>cat</name><part>{thing('head')}</part></object>", "cat: no <bndbox>"),
        (f"<object><name>cat</name><name>dog</name>{BOX}</object>", "object: 2 names"),
        ("<object><name>cat</name><polygon/></object>", "cat: no <bndbox>"),
        (BOX, "object: a <bndbox> outside of an <object>"),
        (thing(box=("9,5", 1, 2, 3)), "cat: <xmin> is '9,5', not a number such as 9.5"),
        (thing(box=("1_0", 1, 2, 3)), "cat: <xmin> is '1_0', not a number"),
        (thing(box=(1, "", 2, 3)), "cat: <ymin> is '', not a number"),
        (thing().replace("<ymax>20</ymax>", ""), "cat: <ymax> is '', not a number"),
        (
            thing().replace("</bndbox>", "<xmin>3</xmin></bndbox>"),
            "cat: <xmin> is '1, 3', not a number",
        ),
        (thing(extra="<difficult>maybe</difficult>"), "cat: <difficult> is 'maybe', neither 0"),
    ],
)
def test_an_object_that_is_none_is_dropped_and_says_why(
    tmp_path: Path, inside: str, reason: str
) -> None:
    add(tmp_path, f"<annotation>{SIZE}{inside}{thing('dog')}</annotation>")
    source = read(tmp_path)
    assert classes(tmp_path) == ["dog"]
    assert len(source.class_names) == 20  # VOC's own, as only their names occur
    assert counts(source) == {Reason.MALFORMED_OBJECT: 1}
    (example,) = source.report.examples(Reason.MALFORMED_OBJECT)
    assert example.startswith("a.jpg: ")
    assert reason in example


def test_every_box_of_an_object_is_one(tmp_path: Path) -> None:
    boxes = BOX + BOX.replace("<xmin>1", "<xmin>3") + BOX.replace("<xmin>1", "<xmin>x")
    add(tmp_path, f"<annotation>{SIZE}<object><name>cat</name>{boxes}</object></annotation>")
    source = read(tmp_path)
    assert source.records[1].boxes.tolist() == [[0, 1, 10, 20], [2, 1, 10, 20]]
    assert counts(source) == {Reason.MALFORMED_OBJECT: 1}


def test_difficult_is_what_the_text_means(tmp_path: Path) -> None:
    texts = ("1", "True", " yes ", "1.0", "0", "FALSE", "no", "Unspecified", "None", "")
    flags = (f"<difficult>{text}</difficult>" for text in texts)
    things = "".join(thing(box=(1, i, 9, 20), extra=flag) for i, flag in enumerate(flags, start=1))
    add(tmp_path, f"<annotation>{SIZE}{things}</annotation>")
    source = read(tmp_path)
    assert source.records[1].is_difficult.tolist() == [True] * 4 + [False] * 6
    assert counts(source) == {Reason.DIFFICULT: 4}


def test_one_class_in_two_normal_forms_is_one(tmp_path: Path) -> None:
    write(tmp_path, {"a": SIZE + thing("re\u0301"), "b": SIZE + thing("r\u00e9")})
    assert read(tmp_path).class_names == ("r\u00e9",)


def test_nesting_as_deep_as_a_file_allows(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<objects>" * 50_000 + thing() + "</objects>" * 50_000)
    assert len(read_annotation(path).objects) == 1
    path.write_text("<a>" * 50_000 + "</a>" * 50_000)
    with pytest.raises(AnnotationError, match="its root is <a>"):
        read_annotation(path)
