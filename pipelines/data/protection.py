"""Evaluation images that must not be trained on: who they are, and whether shards left them out.

--protect paper,coco_mini:val   names, or ROOT:SPLIT of a COCO-format folder, or FILE.json
    |  read_protection          ids and contents of those images
    v
ImageFilter                     a record is left out by id, by the bytes of its image, or by
    |                           its coarse pixels (a copy whose header was rewritten)
    v
manifest.json                   what was protected and what was removed, per reason
    |  check_protection         when training opens the shards
    v
data.protected                  what the run's configuration demands
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.data.coco import CocoFolder, Document, coco_identities
from pipelines.data.encode import UnusableImage, read_image
from pipelines.data.records import CocoRecord, CocoSplit
from pipelines.data.shards import Manifest, ProtectedSet, RemovedSample, SplitInfo
from pipelines.errors import ConfigError, DataError

# what X-Decoder's pretraining is evaluated on; COCO val2017 comes back with captions of 2014
# unless it is left out there
PAPER = ("refcocog-umd-val", "karpathy-val", "karpathy-test", "coco-2017-val")
GROUPS: dict[str, tuple[str, ...]] = {"paper": PAPER}
# a JPEG decoder gives an eighth of the size almost for nothing
_COARSENESS = 8


@dataclass(frozen=True, kw_only=True)
class ProtectedImages:
    """The images of one evaluation set: identities, and hashes of those that were there."""

    name: str
    identities: frozenset[str]
    hashes: frozenset[str]
    num_images: int
    num_hashed: int

    def summary(self) -> ProtectedSet:
        """What the manifest keeps of it."""
        text = "\n".join(sorted(self.identities or self.hashes))
        return ProtectedSet(
            num_images=self.num_images,
            num_hashed=self.num_hashed,
            ids_sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        )


@dataclass(frozen=True, kw_only=True)
class ImageFilter:
    """All that must be left out, ready to be looked up; names by identity and by hash."""

    sets: tuple[ProtectedImages, ...]
    names_of: dict[str, str]

    @classmethod
    def of(cls, sets: Sequence[ProtectedImages]) -> "ImageFilter":
        """The filter of some evaluation sets; an image in several counts for the first."""
        names: dict[str, str] = {}
        for images in sets:
            for key in (*images.identities, *images.hashes):
                names.setdefault(key, images.name)
        return cls(sets=tuple(sets), names_of=names)

    def sha256(self) -> str:
        """Checksum of everything that images are compared with; empty if that is nothing."""
        if not self.sets:
            return ""
        text = "\n".join(sorted((*self.names_of, *(images.name for images in self.sets))))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def by_identity(self, record: CocoRecord) -> RemovedSample | None:
        """Why a record must be left out, as far as its ids tell; None where they do not."""
        return self._found(record, record.identities)

    def by_content(self, record: CocoRecord, image: bytes) -> RemovedSample | None:
        """Why a record must be left out, by the bytes or the coarse pixels of its image."""
        return self._found(record, content_hashes(image)) if self.names_of else None

    def _found(self, record: CocoRecord, keys: Iterable[str]) -> RemovedSample | None:
        for key in keys:
            name = self.names_of.get(key)
            if name is not None:
                reason, _, _ = key.partition(":")
                is_content = reason in ("bytes", "pixels")
                return RemovedSample(
                    key=record.sample_key, protects=name, reason=reason if is_content else "id"
                )
        return None


def content_hashes(image: bytes) -> tuple[str, ...]:
    """`bytes:` and `pixels:` with a checksum each; the second of the picture at an eighth.

    A copy that differs in metadata only, or whose entropy coding was redone without loss, keeps the
    second; a copy that was compressed or scaled again keeps neither.
    """
    exact = f"bytes:{hashlib.sha256(image).hexdigest()}"
    try:
        with Image.open(io.BytesIO(image)) as picture:
            size = (max(1, picture.width // _COARSENESS), max(1, picture.height // _COARSENESS))
            picture.draft("L", size)
            coarse = picture.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # whoever packs it will say what is wrong with it
        return (exact,)
    digest = hashlib.sha256(str(coarse.size).encode("ascii") + coarse.tobytes())
    return exact, f"pixels:{digest.hexdigest()}"


def protected_images(name: str, split: CocoSplit) -> ProtectedImages:
    """The images of a split; those that are not there are known by their ids only.

    Raises:
        DataError: an image has neither an id nor a file.
    """
    hashes: set[str] = set()
    identities: set[str] = set()
    num_hashed = 0
    for record in split:
        identities.update(record.identities)
        try:
            hashes.update(content_hashes(read_image(record)))
            num_hashed += 1
        except UnusableImage:
            if not record.identities:
                raise
    return ProtectedImages(
        name=name,
        identities=frozenset(identities),
        hashes=frozenset(hashes),
        num_images=len(split),
        num_hashed=num_hashed,
    )


def protected_path(text: str) -> ProtectedImages | None:
    """The images of `ROOT:SPLIT` or `FILE.json`; None if the text is neither.

    Raises:
        DataError: the folder or file is damaged, or its images cannot be told apart.
    """
    root, separator, split = text.rpartition(":")
    if separator and Path(root).is_dir():
        return protected_images(set_name(text), CocoFolder(root).split(split))
    path = Path(text)
    if path.suffix != ".json":
        return None
    if not path.exists():
        raise DataError(f"--protect {text}: there is no such file.")
    file_names = [str(image["file_name"]) for image in Document.read(path).images.values()]
    unknown = [name for name in file_names if not coco_identities(name)]
    if unknown:
        raise DataError(
            f"--protect {text}: images must be named as COCO names them, as 000000000139.jpg; got "
            f"{unknown[0]!r}. Give ROOT:SPLIT instead, so that they are compared by content."
        )
    return ProtectedImages(
        name=set_name(text),
        identities=frozenset(key for name in file_names for key in coco_identities(name)),
        hashes=frozenset(),
        num_images=len(file_names),
        num_hashed=0,
    )


def removed_counts(split: SplitInfo) -> Counter[tuple[str, str]]:
    """How many samples were left out, by evaluation set and reason."""
    return Counter((sample.protects, sample.reason) for sample in split.removed)


def expanded(texts: Sequence[str]) -> tuple[str, ...]:
    """Names and paths with groups replaced by their members, each once."""
    names = [name for text in texts for name in GROUPS.get(text, (text,))]
    return tuple(dict.fromkeys(names))


def set_name(text: str) -> str:
    """How a manifest calls what `--protect` or `data.protected` calls `text`.

    A path loses its folders: `data/coco_mini:val` and `/elsewhere/coco_mini:val` are one.
    """
    return Path(text).name


def check_protection(manifests: Sequence[tuple[str, Manifest]], protected: Sequence[str]) -> None:
    """Refuse shards that may hold an image of an evaluation set.

    Raises:
        DataError: a folder was prepared without one of the sets, or two folders mean different
            images by it; the message names the folder, the set, and the command.
    """
    for name in map(set_name, expanded(protected)):
        of_first: tuple[str, str] | None = None
        for folder, manifest in manifests:
            found = manifest.protect.get(name)
            if found is None:
                raise DataError(_unprotected(folder, manifest, protected))
            of_first = of_first or (folder, found.ids_sha256)
            if found.ids_sha256 != of_first[1]:
                raise DataError(
                    f"{folder} and {of_first[0]}: both protect {name}, but not the same images. "
                    "Prepare one of them again with the other's files."
                )


def _unprotected(folder: str, manifest: Manifest, protected: Sequence[str]) -> str:
    missing = [name for name in expanded(protected) if set_name(name) not in manifest.protect]
    kind = manifest.source.get("kind", "SOURCE")
    return (
        f"{folder}: data.protected demands that shards leave out the images of "
        f"{', '.join(protected)}; these were prepared without {', '.join(missing)}. Prepare again: "
        f"`python -m pipelines.prepare {kind} --root ROOT --out OUT --protect "
        f"{','.join(protected)}`, or take out of data.protected what this run is not evaluated on."
    )


def check_names(names: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a name that is no evaluation set.

    Raises:
        ConfigError: the message lists the known names.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--protect {name}: must be one of {', '.join(known)}, or ROOT:SPLIT of a "
                "COCO-format folder, or FILE.json."
            )
