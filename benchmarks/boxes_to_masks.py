"""What boxes without masks teach an OpenSeeD about masks: three ways to train, several seeds.

Half of the scenes have masks of stuff and of the convex shapes and show no other shape, not even
as a hole in the stuff; the other half has boxes of all shapes and no mask. What is asked of unseen
scenes: masks of the shapes that only ever had boxes, from ordinary prediction and from their boxes.

    python benchmarks/boxes_to_masks.py --out runs/boxes_to_masks

Runs that are finished are not trained again, others go on where they stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from boxes_to_masks_measures import assistance, given_boxes, whole_boxes
from harness import machine_folder, machine_info, print_table

from pipelines.scenes.vocabulary import SHAPES, STUFF

REPOSITORY = Path(__file__).resolve().parents[1]
WITH_MASKS = ("circle", "square", "triangle")
BOXES_ONLY = tuple(name for name in SHAPES if name not in WITH_MASKS)
NUM_SCENES, NUM_UNSEEN = 6000, 200
# a fifth of all scenes show nothing but the shapes with masks
SCENES_PER_HALF = 6
CHECKPOINT_EVERY = 100

# which half each batch of a step comes from
HALVES = {"segmentation": "masks", "detection": "boxes"}
NO_ASSISTANCE = "losses.assistance.is_on=false"
CONDITIONS = {
    "neither": ("losses.learns_conditioned_masks=false", NO_ASSISTANCE),
    "conditioned": (NO_ASSISTANCE,),
    "assisted": (),
}
FIGURES = {
    "mask_ap": "mask AP",
    "box_ap": "box AP",
    "given_iou": "IoU from given boxes",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: how, from which seed, and where."""

    condition: str
    seed: int
    folder: Path

    @property
    def scores(self) -> Path:
        """What is written last."""
        return self.folder / "boxes_to_masks.json"


def main() -> None:
    """Train and measure every run that is not yet measured; print and write the table."""
    options = _options()
    out = options.out.resolve()
    data = prepare(out, seed=options.data_seed, num_scenes=options.scenes)
    runs = [
        Run(condition=condition, seed=seed, folder=out / f"{condition}_{seed}")
        for seed, condition in product(options.seeds, options.only)
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train_and_measure(run, data, options.steps), runs))
    found = {(run.condition, run.seed): json.loads(run.scores.read_text()) for run in runs}
    summary = summarised(found)
    show(summary)
    document = {
        "machine": machine_info("cpu"),
        "steps": options.steps,
        "seeds": options.seeds,
        "with_masks": WITH_MASKS,
        "boxes_only": BOXES_ONLY,
        "scenes_in_each_half": options.scenes // SCENES_PER_HALF,
        "unseen_scenes": NUM_UNSEEN,
        "iou_of_whole_boxes": whole_boxes(data / "scenes"),
        "summary": summary,
        "runs": [{"condition": c, "seed": s} | values for (c, s), values in found.items()],
    }
    path = options.json or machine_folder("cpu") / "boxes_to_masks.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs/boxes_to_masks")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--scenes", type=int, default=NUM_SCENES, help="to choose halves from")
    parser.add_argument("--data-seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a thread each")
    parser.add_argument("--json", type=Path, help="instead of this machine's results")
    return parser.parse_args()


def prepare(out: Path, *, seed: int, num_scenes: int) -> Path:
    """The folder with `scenes`, and with the shards of both halves; what is there stays."""
    scenes = out / "scenes"
    counts = ("--num-train", num_scenes, "--num-val", NUM_UNSEEN, "--num-zeroshot", 0)
    run("pipelines.prepare", "scenes", "--out", scenes, "--seed", seed, *counts, "--workers", 2)
    if not (out / "shards").is_dir():
        masks, boxes = halves(scenes, num_scenes // SCENES_PER_HALF)
        write_half(scenes, out / "masks", masks, names=(*WITH_MASKS, *STUFF), kind="panoptic")
        write_half(scenes, out / "boxes", boxes, names=SHAPES, kind="instances")
    for half, source in (("masks", "coco"), ("boxes", "coco-boxes")):
        shards = out / "shards" / half
        if not shards.is_dir():
            run("pipelines.prepare", source, "--root", out / half, "--split", "train",
                "--out", shards)  # fmt: skip
    return out


def halves(scenes: Path, size: int) -> tuple[set[int], set[int]]:
    """Ids of the images with masks, which show no shape that has boxes only, and of the others."""
    document = _read(scenes, "instances")
    names = {category["id"]: category["name"] for category in document["categories"]}
    shown: dict[int, set[str]] = {image["id"]: set() for image in document["images"]}
    for each in document["annotations"]:
        shown[each["image_id"]].add(names[each["category_id"]])
    fitting = [image for image, seen in shown.items() if seen <= set(WITH_MASKS)]
    masks = set(fitting[:size])
    boxes = set([image for image in shown if image not in masks][:size])
    if len(masks) < size:
        raise SystemExit(
            f"boxes_to_masks: {size} scenes must show {', '.join(WITH_MASKS)} only; "
            f"{len(masks)} do. Ask for more --scenes."
        )
    return masks, boxes


def write_half(
    scenes: Path, out: Path, images: set[int], *, names: Sequence[str], kind: str
) -> None:
    """A COCO-format folder of some images with one list of annotations, of some names only."""
    document = _read(scenes, kind)
    categories = [each for each in document["categories"] if each["name"] in names]
    kept = {category["id"] for category in categories}
    annotations = [each for each in document["annotations"] if each["image_id"] in images]
    for each in annotations:
        if kind == "instances":
            # boxes are all that the second half is told
            each |= {"segmentation": [], "area": each["bbox"][2] * each["bbox"][3]}
        seen = {segment["category_id"] for segment in each.get("segments_info", ())}
        if not seen <= kept:
            raise SystemExit(f"boxes_to_masks: image {each['image_id']} shows other names.")
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    (out / "images").mkdir(exist_ok=True)
    for link in ("images/train", "annotations/panoptic_train")[: 2 if kind == "panoptic" else 1]:
        if not (out / link).exists():
            (out / link).symlink_to(scenes / link)
    document |= {
        "images": [each for each in document["images"] if each["id"] in images],
        "annotations": annotations,
        "categories": categories,
    }
    (out / "annotations" / f"{kind}_train.json").write_text(json.dumps(document))


def train_and_measure(one: Run, data: Path, steps: int) -> None:
    """Train, evaluate and measure, unless that was done."""
    if one.scores.is_file():
        seen = json.loads(one.scores.read_text())["steps"]
        if seen != steps:
            raise SystemExit(
                f"boxes_to_masks: {one.folder} must be of --steps {steps}; it has {seen}. Choose "
                "another --out."
            )
        return
    changes = (
        *(f"data.{task}.shards={data / 'shards' / half}" for task, half in HALVES.items()),
        f"steps={steps}",
        f"seed={one.seed}",
        f"checkpoint.every_steps={CHECKPOINT_EVERY}",
        f"checkpoint.keep_every_steps={CHECKPOINT_EVERY}",
        "parallel.num_threads=1",
        *CONDITIONS[one.condition],
    )
    words = [word for change in changes for word in ("--set", change)]
    run("pipelines.pretrain", "--recipe", "openseed_scenes", "--output-dir", one.folder, *words,
        log=Path(f"{one.folder}.log"))  # fmt: skip
    run("pipelines.evaluate", "--checkpoint", one.folder, "--root", data / "scenes",
        "--split", "val", "--stages", "segmentation", "--out", one.folder)  # fmt: skip
    report = json.loads((one.folder / "report.json").read_text())
    per_class = report["details"]["per_class"]
    torch.set_num_threads(1)
    values: dict[str, Any] = {
        "steps": steps,
        "mask_ap": {name: per_class[name]["ap"] for name in SHAPES},
        "box_ap": {name: per_class[name]["box_ap"] for name in SHAPES},
        "pq_stuff": report["pq_stuff"],
        "given_iou": given_boxes(one.folder, data / "scenes"),
    }
    if one.condition == "assisted":
        values["assistance"] = assistance(one.folder, data / "scenes", SHAPES, BOXES_ONLY)
    one.scores.write_text(json.dumps(values, indent=1) + "\n")
    print(one.folder.name, {key: mean_of(values[key], BOXES_ONLY) for key in FIGURES}, flush=True)


def summarised(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over the seeds: of each condition, and of its gain over the first."""
    groups = {"boxes_only": BOXES_ONLY, "with_masks": WITH_MASKS}
    seeds = sorted({seed for _, seed in found})
    conditions = list(dict.fromkeys(condition for condition, _ in found))
    summary: dict[str, Any] = {}
    for condition, figure, (group, names) in product(conditions, FIGURES, groups.items()):
        values = [mean_of(found[condition, seed][figure], names) for seed in seeds]
        first = [mean_of(found[conditions[0], seed][figure], names) for seed in seeds]
        gains = [value - base for value, base in zip(values, first, strict=True)]
        row = summary.setdefault(condition, {}).setdefault(group, {})
        row[figure] = {**spread(values), "gain": spread(gains)}
    return summary


def mean_of(by_name: Mapping[str, float], names: Sequence[str]) -> float:
    """The mean over some of the names, in percent as it came."""
    return statistics.fmean(by_name[name] for name in names)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and most, rounded to a tenth."""
    numbers = {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}
    return {key: round(number, 1) for key, number in numbers.items()}


def show(summary: Mapping[str, Any]) -> None:
    """Print a line for each condition and group: mean (least to most)."""
    lines = []
    for condition, groups in summary.items():
        for group, figures in groups.items():
            cells = [_cell(figures[figure]) for figure in FIGURES]
            gain = figures["mask_ap"]["gain"]
            lines.append((condition, group.replace("_", " "), *cells, _cell(gain)))
    print_table(("trained", "shapes", *FIGURES.values(), "gain in mask AP"), lines)


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1f} ({value['least']:.1f} to {value['most']:.1f})"


def run(module: str, *words: object, log: Path | None = None) -> None:
    """Run one of our commands on one thread; its output goes to `log` or nowhere."""
    command = [sys.executable, "-m", module, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")


def _read(root: Path, kind: str) -> dict[str, Any]:
    path = root / "annotations" / f"{kind}_train.json"
    document: dict[str, Any] = json.loads(path.read_text())
    return document


if __name__ == "__main__":
    main()
