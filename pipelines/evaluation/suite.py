"""Several data sets, one after another, on any number of ranks: each is resumable and may fail.

<out>/<set>/answers-<fingerprint>/   what the model said so far; gone when the set is done
<out>/<set>/predictions/             the same in official formats
<out>/<set>/report.json              figures and where they come from
<out>/results.json                   all sets of this folder, merged under a lock
"""

import fcntl
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.engine.distributed import Group
from pipelines.errors import DataError, ExitCode, PipelineError
from pipelines.evaluation.answers import FileAnswers
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictors import predictor_of, stages_of
from pipelines.evaluation.provenance import tool_versions
from pipelines.evaluation.run import (
    ANSWERING,
    STAGES,
    SplitScores,
    ask,
    count,
    report_of,
    truth_hashes,
)
from pipelines.evaluation.sets import EvaluationData
from pipelines.families import TrainedModel

_log = logging.getLogger(__name__)
RESULTS_NAME = "results.json"
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One data set to evaluate: how it is read, how it is asked, where it is written."""

    name: str
    load: Callable[[], EvaluationData]
    options: EvaluationOptions
    stages: tuple[str, ...]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model, the ranks that share the work, and the facts that every number carries."""

    model: TrainedModel
    group: Group
    facts: Mapping[str, Any]
    is_quiet: bool = False

    def run(self, job: Job) -> Report:
        """The report of a data set, the same on every rank.

        A set that has a report of the same weights, options, truth and tools is not asked again.

        Raises:
            PipelineError: any rank failed; the message says how, on every rank.
        """
        data = _together(self.group, job.load)
        named = stages_of(self.model, (*STAGES, ANSWERING))
        stages = [name for name in job.stages if name in named]
        fingerprint = self.group.main_does(
            lambda: _fingerprint(self.facts, data, job.options, stages)
        )
        done = self.group.main_does(lambda: _finished(job.folder, fingerprint))
        if done is not None:
            _log.info("%s: done already, %s", job.name, job.folder / "report.json")
            return done
        started = time.perf_counter()
        answers = FileAnswers(job.folder / f"answers-{fingerprint[:12]}")
        predictor = predictor_of(self.model, options=job.options)
        _together(
            self.group,
            lambda: ask(
                predictor,
                data,
                job.options,
                stages,
                answers,
                place=self.group.place,
                is_quiet=self.is_quiet,
            ),
        )
        origin = {**self.facts, "fingerprint": fingerprint}

        def finish() -> Report:
            scores = count(data, job.options, stages, answers)
            scores = replace(scores, seconds=time.perf_counter() - started)
            return _write(job, data, scores, origin)

        report = _main(self.group, finish)
        if self.group.place.is_main:
            answers.clear()
        return report


def run_jobs(evaluated: Evaluated, jobs: Sequence[Job], out: Path) -> tuple[dict[str, Report], int]:
    """Reports by name, failures as {"failed": reason}, and the exit code of the first failure.

    `<out>/results.json` has them all after every set, with those of earlier calls.
    """
    reports: dict[str, Report] = {}
    code = int(ExitCode.FINISHED)
    for job in jobs:
        try:
            reports[job.name] = evaluated.run(job)
        except PipelineError as error:
            _log.error("%s: failed, the others go on: %s", job.name, error)
            reports[job.name] = {"failed": str(error)}
            code = code or int(error.exit_code)
        if evaluated.group.place.is_main:
            merge_results(out / RESULTS_NAME, {job.name: reports[job.name]})
    return reports, code


def merge_results(path: Path, reports: Mapping[str, Report]) -> None:
    """Put reports into a results file that other jobs write too; figures by image stay out."""
    slim = {
        name: {key: value for key, value in report.items() if key != "images"}
        for name, report in reports.items()
    }
    with _locked(path):
        before = read_results(path)
        write_text_atomically(path, json.dumps({**before, **slim}, indent=1) + "\n")


def read_results(path: Path) -> dict[str, Report]:
    """The reports of a results file, none where there is no file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(f"{path}: must be JSON; got {error}. Remove it.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint(
    facts: Mapping[str, Any],
    data: EvaluationData,
    options: EvaluationOptions,
    stages: Sequence[str],
) -> str:
    """Everything that may change a digit of the figures, as one hash."""
    decisive = {
        "checkpoint": facts.get("checkpoint", {}).get("sha256"),
        "config": facts.get("config_sha256"),
        "is_averaged": facts.get("is_averaged"),
        "threads": torch.get_num_threads(),
        "truth": truth_hashes(data),
        "images": [record.image_id for record in data.split],
        "options": asdict(options),
        "stages": list(stages),
        "versions": tool_versions(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, fingerprint: str) -> Report | None:
    path = folder / "report.json"
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text())
    except ValueError:
        return None
    return report if report.get("fingerprint") == fingerprint else None


def _write(
    job: Job, data: EvaluationData, scores: SplitScores, origin: Mapping[str, Any]
) -> Report:
    predictions = job.folder / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    for stage in scores.stages:
        stage.write_predictions(predictions)
    report = {**report_of(scores, data, job.options), **origin, "data_set": job.name}
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_text_atomically(job.folder / "report.json", text)
    return report


def _together(group: Group, work: Callable[[], Any]) -> Any:
    """What `work` returns on this rank; where it fails on any rank, the same error on all."""
    result, failure = None, None
    try:
        result = work()
    # a failure of one rank must reach the others, which would wait for it for ever
    except Exception as error:
        failure = _as_pipeline_error(error)
    failures = [each for each in group.gather(failure) if each is not None]
    if failures:
        raise failures[0]
    return result


def _main(group: Group, work: Callable[[], Report]) -> Report:
    """What `work` returns on rank 0, on every rank; any failure of it is a `PipelineError`."""

    def guarded() -> Report:
        try:
            return work()
        except Exception as error:
            raise _as_pipeline_error(error) from error

    return group.main_does(guarded)


def _as_pipeline_error(error: Exception) -> PipelineError:
    if isinstance(error, PipelineError):
        return error
    _log.error("unexpected failure\n%s", "".join(traceback.format_exception(error)))
    return UnexpectedError(f"{type(error).__name__}: {error}")


class UnexpectedError(PipelineError):
    """A data set failed in a way that nobody foresaw; its traceback is in the log."""

    exit_code = ExitCode.DATA
