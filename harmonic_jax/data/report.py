"""What was wrong with a data set, what was done about it, how often, and where."""

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator

MAX_EXAMPLES = 5
MAX_LENGTH = 400


class Reason(enum.StrEnum):
    """What can be wrong, or remarkable, with an annotation, and what is then done."""

    outcome: str

    def __new__(cls, value: str, outcome: str) -> "Reason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.outcome = outcome
        return member

    SAME_CLASS_NAME = "same_class_name", "told apart by their ids"
    MISSING_IMAGE = "missing_image", "image dropped"
    MALFORMED_IMAGE = "malformed_image", "image dropped"
    UNREADABLE_HEADER = "unreadable_header", "image dropped"
    DUPLICATE_IMAGE = "duplicate_image", "image dropped, the first one is kept"
    NEGATIVE_IMAGE = "negative_image", "left out: the list's flag is -1"
    MISSING_ANNOTATION = "missing_annotation", "image dropped"
    NO_LABEL_FILE = "no_label_file", "kept, as an image without objects"
    UNREADABLE_ANNOTATION = "unreadable_annotation", "image dropped"
    SIZE_FROM_FILE = "size_from_file", "kept, with the size in the image's header"
    UNKNOWN_IMAGE = "unknown_image", "object dropped"
    DROPPED_WITH_IMAGE = "dropped_with_image", "object dropped, as its image is"
    MALFORMED_OBJECT = "malformed_object", "object dropped"
    UNKNOWN_CLASS = "unknown_class", "object dropped"
    NOT_FINITE = "not_finite", "object dropped"
    INVERTED = "inverted", "object dropped"
    ZERO_SIZE = "zero_size", "object dropped"
    OUTSIDE = "outside", "object dropped"
    CLIPPED = "clipped", "box clipped to the image"
    DUPLICATE_OBJECT = "duplicate_object", "kept"
    AREA_FROM_BOX = "area_from_box", "kept, with the area of its box"
    IGNORE_FLAG = "ignore_flag", "kept: the field `ignore` is not used, as by pycocotools"
    DUPLICATE_ANNOTATION_ID = "duplicate_annotation_id", "kept, annotation ids are not used"
    CROWD = "crowd", "kept and marked: never trained on, ignored in evaluation"
    DIFFICULT = "difficult", "kept and marked: ignored in evaluation"
    TOO_MANY_OBJECTS = (
        "too_many_objects",
        "not trained on: the data.max_objects largest of its image are",
    )
    NO_MASK = "no_mask", "mask unknown, box kept"
    MALFORMED_MASK = "malformed_mask", "mask unknown, box kept"
    MASK_OF_OTHER_SIZE = "mask_of_other_size", "mask unknown, box kept"
    EMPTY_MASK = "empty_mask", "mask unknown, box kept"
    MALFORMED_POLYGON = "malformed_polygon", "left out of its mask, the mask's other ones kept"
    EMPTY_IMAGE = "empty_image", "kept; trained on with data.keep_empty only"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass
class Finding:
    """One rule's tally."""

    outcome: str
    """What the rule does, in a few words: "object dropped"."""
    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)
    """The first few cases, each beginning with the file's name."""


@dataclasses.dataclass
class DataReport:
    """Counts per rule, with the first cases named.

    Example:
      >>> report = DataReport()
      >>> report.add(Reason.ZERO_SIZE, ["a.jpg: cat (5, 5, 5, 9)"])
      >>> report.add(Reason.CLIPPED, ["b.jpg: dog (-3, 0, 9, 9)"], count=7)
      >>> print(report.format())
      zero_size  1  object dropped
                    a.jpg: cat (5, 5, 5, 9)
      clipped    7  box clipped to the image
                    b.jpg: dog (-3, 0, 9, 9)
                    ..
    """

    findings: dict[str, Finding] = dataclasses.field(default_factory=dict)
    unknown_ids: set[float | None] = dataclasses.field(default_factory=set)
    """What `unknown_class` counts: the ids that no class has."""
    doubts: list[str] = dataclasses.field(default_factory=list)
    """What all objects together say against how they are read, and what to do about it."""

    def add(
        self,
        rule: Reason | str,
        examples: Iterable[str],
        *,
        count: int | None = None,
        outcome: str = "",
    ) -> None:
        """Counts cases of a rule.

        Args:
          rule: the rule, or the name of one that is not about annotations.
          examples: the cases, file name first; only the first few of a rule are ever drawn.
          count: how many cases there are; None counts the examples.
          outcome: what the rule does, where `rule` is only a name.
        """
        outcome = rule.outcome if isinstance(rule, Reason) else outcome
        finding = self.findings.setdefault(str(rule), Finding(outcome))
        if count is None:
            examples = list(examples)
            count = len(examples)
        finding.count += count
        shown = itertools.islice(examples, MAX_EXAMPLES - len(finding.examples))
        finding.examples.extend(map(_shortened, shown))

    def count(self, rule: str) -> int:
        """Cases of a rule; 0 for a rule that never applied."""
        finding = self.findings.get(str(rule))
        return finding.count if finding else 0

    def examples(self, rule: str) -> tuple[str, ...]:
        """The first cases of a rule."""
        finding = self.findings.get(str(rule))
        return tuple(finding.examples) if finding else ()

    def merge(self, other: "DataReport") -> None:
        """Adds the counts of another report; a case met again is counted but not named again."""
        for rule, finding in other.findings.items():
            known = self.examples(rule)
            new = [example for example in finding.examples if example not in known]
            self.add(rule, new, count=finding.count, outcome=finding.outcome)

    def format(self) -> str:
        """A plain-text table, one rule a block; a sentence where no rule applied."""
        if not self.findings:
            return "no rule applied: nothing was dropped, clipped or marked"
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max(map(len, self.findings))
        digits = max(len(str(finding.count)) for finding in self.findings.values())
        indent = " " * (width + digits + 4)
        for rule, finding in self.findings.items():
            yield f"{rule:<{width}}  {finding.count:>{digits}}  {finding.outcome}"
            for example in finding.examples:
                yield indent + example
            if finding.count > len(finding.examples) > 0:
                yield indent + ".."


def _shortened(text: str) -> str:
    """A text in one line, without its middle where it is long: names of files may be anything."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= MAX_LENGTH else f"{text[:100]} .. {text[100 - MAX_LENGTH :]}"
