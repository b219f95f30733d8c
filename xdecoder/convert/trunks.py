"""Image trunks of classifiers, which training starts from: Swin's own files and ResNets.

patch_embed.proj.weight ...       microsoft/Swin-Transformer, and Mask2Former's .pkl of them
stem.conv1.weight, res2.0 ...     detectron2's ImageNet .pkl
conv1.weight, layer1.0 ...        torchvision
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from xdecoder.convert.backbones import RESNET, SWIN, TORCHVISION_RESNET
from xdecoder.convert.rules import CheckpointError, Conversion, Rule, convert
from xdecoder.mask_former.config import SwinConfig
from xdecoder.mask_former.published import TRUNKS

_COUNTER = Rule(r".+\.num_batches_tracked", "unused: a counter", "drop")
_CLASSIFIER = (
    Rule(r"(?:stem\.)?(?:norm|head|fc)\.(?:weight|bias)", "unused: the classifier", "drop"),
    Rule(r".+\.attn_mask", "derived: which ends of a map a shifted window joins", "drop"),
    _COUNTER,
)
# a name that only one kind of file has, and how its names become ours
_KINDS: dict[str, tuple[Rule, ...]] = {
    "patch_embed.proj.weight": SWIN,
    "stem.conv1.weight": RESNET,
    "conv1.weight": TORCHVISION_RESNET,
}
# what no classifier has: the norms of a trunk's maps, and counters of steps
_NEVER_THERE = re.compile(r"backbone\.norms\..+|.+\.num_batches_tracked")


def is_trunk(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of an image trunk alone."""
    return any(name in state for name in _KINDS)


def read_trunk(state: Mapping[str, Tensor]) -> tuple[str, Conversion]:
    """The trunk's name among the published ones, and its weights as a model of ours has them.

    Raises: CheckpointError for a trunk of another size, or names that no rule explains.
    """
    rules = next(rules for name, rules in _KINDS.items() if name in state)
    found = convert(state, (*_CLASSIFIER, *rules))
    ours = {f"backbone.{name}": tensor for name, tensor in found.state.items()}
    report = tuple(
        (theirs, name if change == "drop" else f"backbone.{name}", change)
        for theirs, name, change in found.report
    )
    return _name_of(ours), Conversion(state=ours, report=report)


def without_never_there(missing: Sequence[str]) -> list[str]:
    """Of missing names, those that a trunk of a classifier could have had."""
    return [name for name in missing if not _NEVER_THERE.fullmatch(name)]


def _name_of(ours: Mapping[str, Tensor]) -> str:
    is_swin = "backbone.embeddings.0.conv.weight" in ours
    template = r"backbone\.stages\.{}\.blocks\.(\d+)\." if is_swin else r"backbone\.res{}\.(\d+)\."
    places = (0, 1, 2, 3) if is_swin else (2, 3, 4, 5)
    depths = tuple(_count(ours, template.format(place)) for place in places)
    width = len(ours["backbone.embeddings.0.conv.weight"]) if is_swin else 0
    for name, sized in TRUNKS.items():
        of_swin = sized.dim if isinstance(sized, SwinConfig) else 0
        if (sized.depths, of_swin) == (depths, width):
            return name
    raise CheckpointError(
        f"convert: a trunk must be one of {', '.join(TRUNKS)}; got stages of {depths} blocks"
        f"{f' and a width of {width}' if is_swin else ''}. Other trunks come by name from timm: "
        "model.backbone.weights=timm."
    )


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    found = (re.match(pattern, name) for name in names)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
