"""The rules about annotations, by name; docs/data.md explains each."""

import enum


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
