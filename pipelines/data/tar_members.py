"""The members of one sample out of its stretch of a tar; nothing is ever written to a disk.

webdataset reads the members. What it would do with a stretch that somebody made up is refused
here first: unpacking a compressed stream, filling the holes of a sparse file, following a link.
"""

import io
import tarfile

from webdataset.tariterators import tar_file_iterator

_BLOCK = 512
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x5d\x00\x00")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
# headers that only describe the member after them: long names, and other than ASCII ones
_DESCRIBING = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)


def read_members(blob: bytes, key: str) -> dict[str, bytes]:
    """The contents of `KEY.<extension>`, by extension.

    Raises:
        ValueError: the bytes are no tar, or hold anything but files of this sample.
    """
    _require_plain_files(blob)
    members: dict[str, bytes] = {}
    try:
        for member in tar_file_iterator(io.BytesIO(blob), skip_meta=None):
            prefix, _, extension = member["fname"].partition(".")
            if prefix != key:
                raise ValueError(f"is not at its place; found {member['fname']!r}")
            members[extension] = member["data"]
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(f"is not a readable part of a tar ({error})") from error
    return members


def _require_plain_files(blob: bytes) -> None:
    if blob.startswith(_COMPRESSED):
        raise ValueError("must be plain tar; its bytes begin like a compressed stream")
    start = 0
    while start + _BLOCK <= len(blob) and blob[start]:
        name = blob[start : start + 100].rstrip(b"\0").decode("utf-8", "replace")
        kind, digits = blob[start + 156 : start + 157], blob[start + 124 : start + 136]
        try:
            size = int(digits.rstrip(b"\0 ") or b"0", 8)
        except ValueError as error:
            raise ValueError(f"has a tar header that cannot be read ({error})") from error
        if kind not in _REGULAR + _DESCRIBING:
            raise ValueError(f"must hold regular files only; {name!r} is none")
        end = start + _BLOCK + size
        if size < 0 or end > len(blob):
            raise ValueError(f"ends inside of its member {name!r}")
        if kind == tarfile.XHDTYPE and b"GNU.sparse" in blob[start + _BLOCK : end]:
            raise ValueError(f"must hold regular files only; {name!r} is sparse")
        start = end + -size % _BLOCK
