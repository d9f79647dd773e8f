"""What a file is, told from its first bytes: for the message that says why it is not read."""

import re

START_BYTES = 512  # of a file's beginning that are enough

_KINDS = (
    (rb"(\xef\xbb\xbf)?\s*<[!?A-Za-z]", "a web page, XML or SVG, of a failed download perhaps"),
    (rb"version https://git-lfs", "a Git LFS pointer: `git lfs pull` brings the file"),
    (rb"PK\x03\x04", "a ZIP archive: unpack it first"),
    (rb"\x1f\x8b", "compressed by gzip: unpack it first"),
    (rb"BZh", "compressed by bzip2: unpack it first"),
    (rb"\xfd7zXZ", "compressed by xz: unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (rb"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (rb"Rar!", "a RAR archive: unpack it first"),
    (rb"\x80[\x02-\x05]", "a pickle, which is not read, as it may run code"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes them"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture (PNG, JPEG or GIF)"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb".{4}ftyp(avif|avis)", "AVIF"),
    (rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "HEIC"),
    (rb".{4}ftyp", "a video (MP4, MOV)"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF", "PDF"),
    (rb"%!PS", "PostScript"),
    (rb"\0\0\x01\0", "an icon"),
)


def kind_of(start: bytes) -> str | None:
    """What the file is that begins so, in words that follow "is"; None: not known.

    The first `START_BYTES` bytes are enough.

    Example:
        >>> kind_of(b"\\x1f\\x8b\\x08")
        'compressed by gzip: unpack it first'
    """
    for pattern, words in _KINDS:
        if re.match(pattern, start[:START_BYTES], re.DOTALL):
            return words
    return None
