"""What most programs need, by its short name; each is loaded when it is first asked for.

from xdecoder import Referring, XDecoder
model = XDecoder.from_pretrained("runs/demo")
answer = model.predict(Image.open("photo.jpg"), Referring(phrases=("the red circle",)))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdecoder.batch import Vocabulary
    from xdecoder.mask_former.model import MaskFormer
    from xdecoder.model import XDecoder
    from xdecoder.openseed.model import OpenSeeD
    from xdecoder.openseed.questions import MasksOfBoxes
    from xdecoder.tasks.captioning import Captioning
    from xdecoder.tasks.detection import Detection, Grounding, ReferringDetection
    from xdecoder.tasks.editing import Editing
    from xdecoder.tasks.open_vocabulary import Instance, Panoptic, Semantic
    from xdecoder.tasks.referring import Referring
    from xdecoder.tasks.referring_captioning import ReferringCaptioning
    from xdecoder.tasks.region_retrieval import RegionRetrieval
    from xdecoder.tasks.retrieval import Retrieval

_HOMES = {
    "Captioning": "xdecoder.tasks.captioning",
    "Detection": "xdecoder.tasks.detection",
    "Editing": "xdecoder.tasks.editing",
    "Grounding": "xdecoder.tasks.detection",
    "Instance": "xdecoder.tasks.open_vocabulary",
    "MaskFormer": "xdecoder.mask_former.model",
    "MasksOfBoxes": "xdecoder.openseed.questions",
    "OpenSeeD": "xdecoder.openseed.model",
    "Panoptic": "xdecoder.tasks.open_vocabulary",
    "Referring": "xdecoder.tasks.referring",
    "ReferringCaptioning": "xdecoder.tasks.referring_captioning",
    "ReferringDetection": "xdecoder.tasks.detection",
    "RegionRetrieval": "xdecoder.tasks.region_retrieval",
    "Retrieval": "xdecoder.tasks.retrieval",
    "Semantic": "xdecoder.tasks.open_vocabulary",
    "Vocabulary": "xdecoder.batch",
    "XDecoder": "xdecoder.model",
}
__all__ = [
    "Captioning",
    "Detection",
    "Editing",
    "Grounding",
    "Instance",
    "MaskFormer",
    "MasksOfBoxes",
    "OpenSeeD",
    "Panoptic",
    "Referring",
    "ReferringCaptioning",
    "ReferringDetection",
    "RegionRetrieval",
    "Retrieval",
    "Semantic",
    "Vocabulary",
    "XDecoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'xdecoder' has no {name!r}; it has {', '.join(__all__)} and its submodules."
        )
    return getattr(importlib.import_module(_HOMES[name]), name)
