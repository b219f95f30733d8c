"""Captions and retrieval over a split, with captions exchanged between images as control."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines.data.coco import CocoRecord
from pipelines.evaluation.captions import score_captions
from pipelines.evaluation.controls import shuffled_partners
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.retrieval import RANKS, score_retrieval

Values = dict[str, float]


class CaptionStage:
    """Generated captions against all references; tokens of the first one, given those before."""

    name = "captioning"

    def __init__(
        self,
        records: Sequence[CocoRecord],
        *,
        with_controls: bool = True,
        java: str = "never",
    ) -> None:
        captioned = [record for record in records if record.captions]
        self._references = {record.image_id: record.captions or () for record in captioned}
        ids = list(self._references)
        partners = shuffled_partners(ids)
        self._stand_in = {ids[i]: ids[partner] for i, partner in enumerate(partners)}
        self._with_controls, self._java = with_controls, java
        self.hypotheses: dict[int, str] = {}
        self._hits = {False: np.zeros(2, np.int64), True: np.zeros(2, np.int64)}
        self._cider_of_image: dict[int, float] = {}

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has a caption."""
        return bool(record.captions)

    def add(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> None:
        """Predict and take some images."""
        ids = [record.image_id for record in records]
        self.hypotheses |= dict(zip(ids, predictor.caption(images), strict=True))
        own = [self._references[image_id][0] for image_id in ids]
        self._hits[False] += predictor.caption_hits(images, own)
        if self._with_controls:
            others = [self._references[self._stand_in[image_id]][0] for image_id in ids]
            self._hits[True] += predictor.caption_hits(images, others)

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key (CIDEr times 100, as papers print it), and counts."""
        counts: dict[str, Any] = {"num_images_captioning": len(self.hypotheses)}
        if not self.hypotheses:
            return {}, counts
        references = {key: self._references[key] for key in self.hypotheses}
        scores = score_captions(references, self.hypotheses, java=self._java)
        self._cider_of_image = {int(key): value for key, value in scores.cider_per_image.items()}
        values = {f"bleu{n}": 100 * value for n, value in enumerate(scores.bleu, start=1)}
        values |= {"rouge_l": 100 * scores.rouge_l, "cider": 100 * scores.cider}
        if scores.meteor is not None:
            values["meteor"] = 100 * scores.meteor
        values["caption_token_accuracy"] = self._accuracy(is_shuffled=False)
        if self._with_controls:
            keys = list(self.hypotheses)
            partners = shuffled_partners(keys)
            exchanged = {
                key: self.hypotheses[keys[partner]]
                for key, partner in zip(keys, partners, strict=True)
            }
            control = score_captions(references, exchanged)
            values["cider_shuffled"] = 100 * control.cider
            values["bleu4_shuffled"] = 100 * control.bleu[3]
            values["caption_token_accuracy_shuffled"] = self._accuracy(is_shuffled=True)
        counts["num_caption_tokens"] = int(self._hits[False][1])
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {"cider": {key: 100 * value for key, value in self._cider_of_image.items()}}

    def results_file(self) -> list[dict[str, Any]]:
        """The captions in COCO's results format."""
        return [{"image_id": key, "caption": text} for key, text in self.hypotheses.items()]

    def _accuracy(self, *, is_shuffled: bool) -> float:
        correct, total = self._hits[is_shuffled].tolist()
        return 100 * correct / max(total, 1)


class RetrievalStage:
    """Vectors of images and of all their captions."""

    name = "retrieval"

    def __init__(self, *, pool: int, with_controls: bool = True) -> None:
        self._pool, self._with_controls = pool, with_controls
        self._images: list[Float[np.ndarray, "n c"]] = []
        self._texts: list[Float[np.ndarray, "n c"]] = []
        self._owners: list[int] = []
        self._captions: list[str] = []
        self._num_images = 0

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has a caption."""
        return bool(record.captions)

    def add(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> None:
        """Embed and take some images with their captions."""
        captions = [record.captions or () for record in records]
        texts = [caption for each in captions for caption in each]
        self._images.append(predictor.embed_images(images))
        self._texts.append(predictor.embed_texts(texts))
        self._captions += texts
        for each in captions:
            self._owners += [self._num_images] * len(each)
            self._num_images += 1

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and counts; `retrieval_rN` is the mean of both directions."""
        counts = {
            "num_images_retrieval": self._num_images,
            "num_captions_retrieval": len(self._captions),
            "num_distinct_captions_retrieval": len(set(self._captions)),
        }
        if not self._num_images:
            return {}, counts
        images, texts = np.concatenate(self._images), np.concatenate(self._texts)
        values: Values = {}
        for name, pool in (("retrieval", self._pool), ("retrieval_full", None)):
            scores = score_retrieval(images, texts, self._owners, pool=pool)
            for rank in RANKS:
                values[f"{name}_r{rank}"] = 100 * scores.mean(rank)
                values[f"{name}_i2t_r{rank}"] = 100 * scores.image_to_text[rank]
                values[f"{name}_t2i_r{rank}"] = 100 * scores.text_to_image[rank]
        if self._with_controls:
            partners = np.array(shuffled_partners(self._owners))
            exchanged = score_retrieval(images, texts[partners], self._owners, pool=self._pool)
            values |= {f"retrieval_r{rank}_shuffled": 100 * exchanged.mean(rank) for rank in RANKS}
        counts["num_pools_retrieval"] = max(1, self._num_images // self._pool)
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {}
