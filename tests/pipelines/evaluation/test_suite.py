import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, DataError
from pipelines.evaluate import main
from pipelines.evaluation.answers import FileAnswers
from pipelines.evaluation.model_predictor import ModelPredictor
from pipelines.evaluation.sets import SETS, SUITES, chosen_sets
from pipelines.evaluation.suite import merge_results, read_results

REPOSITORY = Path(__file__).resolve().parents[3]
# what may differ between two evaluations of the same weights
TIMES = {"evaluation_seconds"}


@pytest.fixture
def data_root(scenes_root: Path, tmp_path: Path) -> Path:
    """A data root that has the scenes and nothing else."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "scenes").symlink_to(scenes_root)
    return root


def words(run: Path, data_root: Path, out: Path, *more: object) -> list[str]:
    fixed = ["--checkpoint", run, "--data-root", data_root, "--out", out, "--quiet"]
    return [*map(str, fixed), "--object-threshold", "0", *map(str, more)]


def report(out: Path, name: str) -> dict[str, Any]:
    found = json.loads((out / "eval" / name / "report.json").read_text())
    return {key: value for key, value in found.items() if key not in TIMES}


def forbid_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was asked again")

    for name in ("segment", "refer", "caption", "embed_images", "name_regions"):
        monkeypatch.setattr(ModelPredictor, name, refuse)


def torchrun(num_ranks: int, arguments: Sequence[str]) -> str:
    """What a run on several ranks printed; each rank ends with code 3."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={num_ranks}", "-m", "pipelines.evaluate", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stderr.count("exitcode  : 3") == num_ranks, done.stderr[-3000:]
    return done.stdout


@pytest.mark.dist
def test_two_ranks_give_the_digits_of_one_and_a_failed_set_stops_none_of_them(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    # five images in batches of two: the ranks get two batches and one
    size = ("--batch-size", 2)
    # a process of its own, as the ranks are: what a process ran before can change last digits
    alone = words(tiny_run, data_root, tmp_path / "one", "--suite", "scenes", *size)
    command = [sys.executable, "-m", "pipelines.evaluate", *alone]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=True)
    sets = ("--dataset", "voc2012", "scenes", "scenes-zeroshot")
    printed = torchrun(2, words(tiny_run, data_root, tmp_path / "two", *sets, *size))
    assert printed.count("voc2012: failed, the others go on") == 2
    for name in SUITES["scenes"]:
        assert report(tmp_path / "one", name) == report(tmp_path / "two", name)
        folders = [tmp_path / ranks / "eval" / name / "predictions" for ranks in ("one", "two")]
        files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.*"))
        assert len(files) >= 5
        for file in files:
            # an .npz has the time of its writing inside
            if file.suffix != ".npz":
                first, second = ((folder / file).read_bytes() for folder in folders)
                assert first == second, file
    figures = report(tmp_path / "two", "scenes")
    assert figures["details"]["num_images"] == 5
    assert 0 < figures["refer_miou"] < 100


def test_a_missing_set_does_not_stop_the_others_and_the_code_tells(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    more = ("--dataset", "voc2012", "scenes", "--stages", "segmentation", "--max-images", 1)
    assert main(words(tiny_run, data_root, tmp_path, *more)) == 3
    results = read_results(tmp_path / "eval" / "results.json")
    assert "must lie in" in results["voc2012"]["failed"]
    assert "given out at http" in results["voc2012"]["failed"]
    assert results["scenes"]["pq"] is not None
    assert "images" not in results["scenes"]


def test_an_unforeseen_failure_of_a_set_does_not_stop_the_others(
    tiny_run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(ModelPredictor, "name_regions", burst)
    more = ("--suite", "scenes", "--max-images", 1, "--stages", "retrieval", "naming")
    assert main(words(tiny_run, data_root, tmp_path, *more)) == 3
    results = read_results(tmp_path / "eval" / "results.json")
    assert results["scenes-zeroshot"]["failed"] == "ZeroDivisionError: oh"
    assert "retrieval_r1" in results["scenes"]


def test_a_killed_evaluation_goes_on_where_it_was(
    tiny_run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--dataset", "scenes", "--batch-size", 2, "--stages", "captioning", "retrieval")
    assert main(words(tiny_run, data_root, tmp_path / "whole", *more)) == 0
    ask, calls = ModelPredictor.caption, []

    def stops(self: ModelPredictor, images: Any) -> list[str]:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ask(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(ModelPredictor, "caption", stops)
        with pytest.raises(KeyboardInterrupt):
            main(words(tiny_run, data_root, tmp_path / "parts", *more))
        assert main(words(tiny_run, data_root, tmp_path / "parts", *more)) == 0
    # two images, the interrupted two, then these again and the last one
    assert calls == [2, 2, 2, 1]
    assert report(tmp_path / "parts", "scenes") == report(tmp_path / "whole", "scenes")
    assert not list((tmp_path / "parts" / "eval" / "scenes").glob("answers-*"))


def test_a_finished_set_is_not_asked_again_unless_something_decisive_changed(
    tiny_run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--dataset", "scenes", "--stages", "segmentation", "--max-images", 1)
    assert main(words(tiny_run, data_root, tmp_path, *more)) == 0
    first = report(tmp_path, "scenes")
    forbid_the_model(monkeypatch)
    assert main(words(tiny_run, data_root, tmp_path, *more)) == 0
    assert report(tmp_path, "scenes") == first
    code = main(words(tiny_run, data_root, tmp_path, *more, "--object-threshold", 0.9))
    assert code == 3
    assert "asked again" in read_results(tmp_path / "eval" / "results.json")["scenes"]["failed"]


def test_predictions_of_a_model_score_the_same_from_their_files(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    assert main(words(tiny_run, data_root, tmp_path, "--dataset", "scenes")) == 0
    model = report(tmp_path, "scenes")
    predictions = tmp_path / "eval" / "scenes" / "predictions"
    annotations = data_root / "scenes" / "annotations"
    truths = {
        "panoptic": (annotations / "panoptic_val.json", "panoptic.json", ("pq", "sq_things")),
        "instance": (annotations / "instances_val.json", "instances.json", ("ap", "ap50")),
        "caption": (annotations / "captions_val.json", "captions.json", ("cider", "bleu1")),
        "referring": (data_root / "scenes" / "refs", "referring.json", ("ciou", "p50")),
    }
    for metric, (truth, name, figures) in truths.items():
        out = tmp_path / f"{metric}.json"
        arguments = [
            "--predictions", predictions / name, "--ground-truth", truth, "--metric", metric,
            "--json", out, "--quiet", "--java", "never", "--split", "val",
        ]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
        scored = json.loads(out.read_text())
        for figure in figures:
            key = f"refer_{figure}" if metric == "referring" else figure
            assert 100 * scored[figure] == model[key], (metric, figure)


def test_every_report_says_where_its_numbers_come_from(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    more = ("--dataset", "scenes", "--stages", "segmentation", "--max-images", 1)
    assert main(words(tiny_run, data_root, tmp_path, *more)) == 0
    found = report(tmp_path, "scenes")
    assert len(found["checkpoint"]["sha256"]) == len(found["config_sha256"]) == 64
    assert found["checkpoint"]["step"] == 7
    assert "5 label pictures" in found["ground_truth"]
    assert found["protocols"]["pq"].endswith("object-0/overlap-0.8")
    assert found["data_set"] == "scenes"


def test_jobs_of_an_array_write_one_results_file(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "results.json"
    for name in ("b", "a", "b"):
        merge_results(path, {name: {"pq": len(name), "images": {"1": {}}}})
    assert read_results(path) == {"b": {"pq": 1}, "a": {"pq": 1}}
    path.write_text("{")
    with pytest.raises(DataError, match=r"results\.json: must be JSON; got"):
        read_results(path)


def test_sets_are_chosen_by_name_or_place() -> None:
    assert chosen_sets("zeroshot", ["0", "cityscapes"]) == ["ade20k-panoptic", "cityscapes"]
    assert chosen_sets("coco", []) == ["coco-panoptic", "coco-karpathy"]
    assert chosen_sets(None, ["0"]) == [next(iter(SETS))]
    assert {name for names in SUITES.values() for name in names} <= set(SETS)


@pytest.mark.parametrize(
    ("suite", "names", "text"),
    [
        ("mine", [], r"--suite must be one of \['zeroshot'.*got 'mine'"),
        ("coco", ["voc"], r"--dataset must be one of .* got 'voc'"),
        ("coco", ["2"], r"a place in 0\.\.1; got '2'"),
    ],
)
def test_unknown_suites_and_sets_are_refused(suite: str, names: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        chosen_sets(suite, names)


def test_named_sets_need_a_data_root(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(tiny_run), "--suite", "coco", "--out", str(tmp_path)]) == 2
    assert "need --data-root DIR" in capsys.readouterr().err


def test_a_command_without_model_and_files_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "coco"]) == 2
    assert "needs --checkpoint, or --predictions with" in capsys.readouterr().err


def test_suites_and_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    assert "zeroshot: ade20k-panoptic" in text
    assert "refcoco+-testA: refcoco+ unc testA in DATA_ROOT/refcoco/refcoco+: referring" in text


def test_a_damaged_answer_is_asked_again(tmp_path: Path) -> None:
    answers = FileAnswers(tmp_path / "answers")
    assert answers.read(3) is None
    answers.write(3, {"referring": [{"sentences": []}]})
    assert answers.read(3) == {"referring": [{"sentences": []}]}
    next(tmp_path.glob("answers/*3.json")).write_text('{"referr')
    assert answers.read(3) is None


def test_the_released_ways_of_asking_are_part_of_the_protocol(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    more = ("--dataset", "scenes", "--stages", "referring", "segmentation", "--max-images", 2)
    assert main(words(tiny_run, data_root, tmp_path / "own", *more)) == 0
    assert main(words(tiny_run, data_root, tmp_path / "released", *more, "--as-released")) == 0
    own, released = report(tmp_path / "own", "scenes"), report(tmp_path / "released", "scenes")
    assert released["protocols"]["refer"].startswith("xdecoder-v2/")
    assert released["protocols"]["pq"].count("with-global-query") == 1
    assert released["details"]["num_sentences"] < own["details"]["num_sentences"]


def test_the_last_class_may_stand_for_nothing(
    tiny_run: Path, data_root: Path, tmp_path: Path
) -> None:
    more = ("--dataset", "scenes", "--stages", "segmentation", "--max-images", 2)
    assert main(words(tiny_run, data_root, tmp_path / "a", *more)) == 0
    without = words(
        tiny_run, data_root, tmp_path / "b", *more, "--vocabulary", "without-background"
    )
    assert main(without) == 0
    own, other = report(tmp_path / "a", "scenes"), report(tmp_path / "b", "scenes")
    assert "without-background" in other["protocols"]["pq"]
    categories = json.loads((data_root / "scenes/annotations/panoptic_val.json").read_text())
    last = categories["categories"][-1]["id"]
    found = json.loads((tmp_path / "b/eval/scenes/predictions/panoptic.json").read_text())
    segments = [each for row in found["annotations"] for each in row["segments_info"]]
    assert segments
    assert last not in {each["category_id"] for each in segments}
    assert own["protocols"]["pq"] != other["protocols"]["pq"]


def test_the_scenes_may_move_without_being_asked_again(
    tiny_run: Path, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--dataset", "scenes", "--stages", "segmentation", "--max-images", 1)
    for place in ("here", "there"):
        shutil.copytree(scenes_root, tmp_path / place / "scenes")
    assert main(words(tiny_run, tmp_path / "here", tmp_path, *more)) == 0
    forbid_the_model(monkeypatch)
    assert main(words(tiny_run, tmp_path / "there", tmp_path, *more)) == 0
