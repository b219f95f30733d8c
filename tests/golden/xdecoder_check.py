"""X-Decoder: one line per recorded file, every tensor of it compared or explained.

Sizes, names and thresholds come from the files of the case, none from here.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import xdecoder_eval
import xdecoder_parts
import xdecoder_training
from line import BACKENDS, Line
from xdecoder_recording import Case, Recording

CHECKS: dict[str, Callable[[Line, Case, Recording], None]] = {
    "full_eval_seg": xdecoder_eval.segmentation,
    "full_eval_referring": xdecoder_eval.referring,
    "full_eval_captioning": xdecoder_eval.captioning,
    "full_eval_refcaptioning": xdecoder_eval.captioning,
    "full_eval_retrieval": xdecoder_eval.retrieval,
    "full_train_seg": xdecoder_training.segmentation,
    "full_train_vlp": xdecoder_training.image_text,
    "full_train_steps": xdecoder_training.steps,
    "sub_decoder_seg": xdecoder_eval.decoder,
    "sub_decoder_grounding_eval": xdecoder_eval.decoder,
    "sub_prediction_head": xdecoder_parts.prediction_head,
    "sub_self_attn_masks": xdecoder_parts.visibility,
    "sub_posenc": xdecoder_parts.positions,
    "sub_backbone_davit": xdecoder_parts.davit_trunk,
    "sub_backbone_focal": xdecoder_parts.focal_trunk,
    "sub_backbone_focal_dw": xdecoder_parts.focal_trunk,
    "sub_pixel_decoder_fpn": xdecoder_parts.pixel_decoder,
    "sub_pixel_decoder_deform": xdecoder_parts.pixel_decoder,
    "sub_ms_deform_attn": xdecoder_parts.deformable_attention,
    "sub_language_encoder": xdecoder_parts.texts,
    "sub_matcher": xdecoder_parts.matcher,
    "sub_point_sampling": xdecoder_parts.point_sampling,
    "sub_contrastive_losses": xdecoder_parts.contrastive,
    "sub_postprocess": xdecoder_parts.postprocessing,
    "sub_metrics": xdecoder_parts.metrics,
}
# how names of inputs start; they count as used only if something reads them
_INPUTS = (
    *("in.", "weight.", "rand.", "module.in.", "module.weight.", "ref.in.", "ret.in."),
    # numbers that their process gave to words; which are equal is what matters
    *("tgt.labels_hash_", "tgt.captions_hash_"),
)
_UNUSED = {
    r"(in\.gt_boxes_xyxy|tgt\.boxes)_\d+": "boxes, which no loss of X-Decoder reads",
    r"in\.is_things_\d+": "losses treat things and stuff alike",
    r"in\.(vocab_emb|class_embeddings)": "class vectors, which this task does not read",
}


def check(folder: Path) -> Iterator[Line]:
    """One line per recorded file of a case, on plain PyTorch and on the compiled operators."""
    if not (folder / "config.json").is_file():
        return
    case = Case(folder)
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem != "weights":
            yield check_file(case, path.stem)


def check_file(case: Case, name: str, columns: Iterable[str] = BACKENDS) -> Line:
    """The line of one file."""
    line = Line(name)
    if name in CHECKS:
        line.run_with_each_backend(lambda: _check_once(line, case, name), columns)
    else:
        line.complaints.append("NOT COVERED: no check of this name")
    return line


def _check_once(line: Line, case: Case, name: str) -> None:
    recorded = case.read(name)
    torch.manual_seed(0)
    CHECKS[name](line, case, recorded)
    recorded.account(line, _INPUTS, _UNUSED)
