"""The data of a task: found below a root, packed once, opened for evaluation."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.preparation import PrepareRequest, prepare
from pipelines.data.source import ShardSource
from pipelines.data.sources import Request, Source, source_named
from pipelines.errors import DataError
from pipelines.evaluation.sets import EvaluationData
from pipelines.finetuning.tasks import FinetuneTask, Location
from pipelines.vqa import normal_answer
from xdecoder.tasks.answering import AskedQuestion

# how often an answer must occur to be one of the head's
_LEAST_COUNT = 9


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Where the data of a task are, none of them read yet."""

    task: FinetuneTask
    location: Location
    root: Path

    @property
    def source(self) -> Source:
        return source_named(self.location.source)

    def request(self, split: str) -> Request:
        """What to ask of the source for a split."""
        return Request(root=self.root, split=split, split_by=self.location.split_by)

    @property
    def is_own_format(self) -> bool:
        """Whether a COCO-format folder stands in for the data set of the task's name."""
        return self.location != self.task.locations[0]

    def shard_folder(self, parent: Path) -> Path:
        """A folder that no other data share."""
        named = f"{self.root.resolve()} {self.location}"
        return parent / f"{self.task.name}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"

    def pack(self, out: Path, *, num_workers: int) -> None:
        """Write the training split as shards, or go on with them; done at once if they are there.

        Raises:
            DataError: files are damaged.
        """
        protect = () if self.is_own_format else self.task.protect
        prepare(
            PrepareRequest(
                source=self.source,
                request=self.request(""),
                splits=["train=" + "+".join(self.location.train)],
                protect=protect,
                num_workers=num_workers,
            ),
            out,
        )

    def evaluated(self) -> EvaluationData:
        """The split that the task is scored on."""
        split = self.source.read(self.request(self.location.val))
        name = f"{self.task.name}-{self.location.val}"
        return EvaluationData(
            name=name, root=self.root, split=split, has_objects=self.task.has_objects
        )


def find_data(task: FinetuneTask, root: str) -> TaskData:
    """Where a task's data are below a root.

    For phrases, the root may also be REFER's own folder of a COCO-format folder.

    Raises:
        DataError: they are nowhere; the message says what is missing, and where it is given out.
    """
    wanted = _wanted(task)
    if not root:
        raise DataError(
            f"finetune {task.name}: needs the data set; name its folder with --root DIR. {wanted}"
        )
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"finetune {task.name}: --root {root}: there is no such folder. {wanted}")
    if task.kind == "referring" and any(folder.glob("refs(*).p")):
        folder = folder.resolve().parent
    missing = []
    for location in task.locations:
        found = TaskData(task=task, location=location, root=folder)
        lacking = [
            each
            for split in (*location.train, location.val)
            for each in found.source.missing_files(found.request(split))
        ]
        if not lacking and _has_annotation(found):
            return found
        missing.append(lacking)
    listed = "\n".join(f"  {path}   from {url}" for path, url in dict.fromkeys(missing[0]))
    raise DataError(f"finetune {task.name}: files are missing below {root}.\n{listed}\n{wanted}")


def num_samples(shards: Sequence[str], split: str, task: str, *, is_by_text: bool = False) -> int:
    """How many samples of folders of shards serve a task of training, or how many texts of them."""
    sources = [ShardSource.open(folder, split, task, cache=None) for folder in shards]
    if is_by_text:
        return sum(int(source.index["num_captions"][source.rows].sum()) for source in sources)
    return sum(len(source.rows) for source in sources)


def usual_answers(data: TaskData) -> tuple[str, ...]:
    """The answers that people gave often enough in the training split, the most frequent first.

    Source: arXiv 1707.07998, which found 3,129 answers that occur more than eight times.
    """
    counts: Counter[str] = Counter()
    for split in data.location.train:
        for record in data.source.read(data.request(split)):
            for line in record.captions or ():
                question = AskedQuestion.from_line(line)
                given = Counter(normal_answer(answer) for answer in question.answers)
                # one answer stands for a question: what most people said
                counts[given.most_common(1)[0][0]] += 1
    least = min(_LEAST_COUNT, max(counts.values(), default=0))
    return tuple(answer for answer, count in counts.most_common() if count >= least)


def _has_annotation(found: TaskData) -> bool:
    """Whether a COCO-format folder that stands in has what the task needs."""
    if found.task.kind != "referring" or found.location.source != "coco":
        return True
    return any((found.root / "refs").glob("refs(*).p"))


def _wanted(task: FinetuneTask) -> str:
    """What would have to be where, for somebody who has nothing yet."""
    found = TaskData(task=task, location=task.locations[0], root=Path("DIR"))
    needed = [
        path
        for split in (*found.location.train, found.location.val)
        for path, _ in found.source.missing_files(found.request(split))
    ]
    listed = ", ".join(str(path) for path in dict.fromkeys(needed))
    return (
        f"{found.source.name} is given out at {found.source.url}; {listed} must be there. "
        "docs/data.md says more."
    )
