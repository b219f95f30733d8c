import gzip
import tarfile

import pytest

from pipelines.data.tar_members import read_members


def _member(name: str, content: bytes = b"abc", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf() + content + bytes(-len(content) % 512)


def test_members_are_found_by_extension() -> None:
    blob = _member("k.jpg", b"one") + _member("k.panoptic.png", b"two") + _member("k.json", b"")
    assert read_members(blob, "k") == {"jpg": b"one", "panoptic.png": b"two", "json": b""}


@pytest.mark.parametrize("key", ["k" * 150, "z\u00fcrich", "__mine__"])
def test_long_and_foreign_keys_are_read(key: str) -> None:
    assert read_members(_member(f"{key}.jpg"), key) == {"jpg": b"abc"}


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (gzip.compress(_member("k.jpg")), "must be plain tar; its bytes begin like a compressed"),
        (_member("k.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'k.jpg' is none"),
        (_member("k.jpg", b"", type=tarfile.LNKTYPE, linkname="x"), "'k.jpg' is none"),
        (_member("k.jpg", b"", type=tarfile.GNUTYPE_SPARSE), "'k.jpg' is none"),
        (_member("k.jpg", b"", pax_headers={"GNU.sparse.size": "9999"}), "is sparse"),
        (_member("k.jpg")[:514], "ends inside of its member 'k.jpg'"),
        (_member("../k.jpg"), r"is not at its place; found '\.\./k\.jpg'"),
        (_member("/k.jpg"), "is not at its place; found '/k.jpg'"),
        (_member("k.jpg").replace(b"00000000003", b"zzzzzzzzzzz"), "tar header that cannot be"),
        (b"k" * 512, "tar header that cannot be read"),
        (_member("k.jpg").replace(b"ustar", b"uster"), "is not a readable part of a tar"),
    ],
)
def test_what_is_no_plain_member_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_members(blob, "k")
