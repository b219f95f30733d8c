"""Captions and retrieval over a split, with captions exchanged between images as control."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines.data.coco import CocoRecord
from pipelines.evaluation.captions import score_captions
from pipelines.evaluation.controls import shuffled_partners
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.retrieval import RANKS, score_retrieval
from pipelines.evaluation.stage import Answer, Values, packed, unpacked


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

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """A caption of each image; predicted tokens are counted for the images together."""
        ids = [record.image_id for record in records]
        answers: list[Answer] = [{"caption": caption} for caption in predictor.caption(images)]
        own = [self._references[image_id][0] for image_id in ids]
        # the counts of a batch go with its first image
        answers[0]["hits"] = list(predictor.caption_hits(images, own))
        if self._with_controls:
            others = [self._references[self._stand_in[image_id]][0] for image_id in ids]
            answers[0]["shuffled_hits"] = list(predictor.caption_hits(images, others))
        return answers

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one image."""
        self.hypotheses[record.image_id] = answer["caption"]
        for name, is_shuffled in (("hits", False), ("shuffled_hits", True)):
            self._hits[is_shuffled] += np.array(answer.get(name, (0, 0)), dtype=np.int64)

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
        counts["skipped_captioning"] = dict(scores.skipped)
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

    def write_predictions(self, folder: Path) -> None:
        """COCO's results of captions."""
        rows = [{"image_id": key, "caption": text} for key, text in self.hypotheses.items()]
        (folder / "captions.json").write_text(json.dumps(rows))

    def _accuracy(self, *, is_shuffled: bool) -> float:
        correct, total = self._hits[is_shuffled].tolist()
        return 100 * correct / max(total, 1)


class RetrievalStage:
    """Vectors of images and of their captions.

    pool: images of a disjoint set, 0 = all together. texts_per_image: the first so many, 0 = all.
    """

    name = "retrieval"

    def __init__(self, *, pool: int, texts_per_image: int = 0, with_controls: bool = True) -> None:
        self._pool, self._with_controls = pool, with_controls
        self._texts_per_image = texts_per_image
        self._images: list[Float[np.ndarray, "n c"]] = []
        self._texts: list[Float[np.ndarray, "n c"]] = []
        self._owners: list[int] = []
        self._captions: list[str] = []
        self._num_images = 0

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has a caption."""
        return bool(record.captions)

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """The vector of each image and those of its captions."""
        captions = [self._texts_of(record) for record in records]
        images_found = predictor.embed_images(images)
        texts = predictor.embed_texts([caption for each in captions for caption in each])
        ends = np.cumsum([len(each) for each in captions])
        parts = np.split(texts, ends[:-1])
        return [
            {"image": packed(vector[None]), "texts": packed(part)}
            for vector, part in zip(images_found, parts, strict=True)
        ]

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one image with its captions."""
        captions = self._texts_of(record)
        self._images.append(unpacked(answer["image"]))
        self._texts.append(unpacked(answer["texts"]))
        self._captions += captions
        self._owners += [self._num_images] * len(captions)
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
        pools = {"retrieval": self._pool or None, "retrieval_full": None}
        for name, pool in pools.items():
            scores = score_retrieval(images, texts, self._owners, pool=pool)
            for rank in RANKS:
                values[f"{name}_r{rank}"] = 100 * scores.mean(rank)
                values[f"{name}_i2t_r{rank}"] = 100 * scores.image_to_text[rank]
                values[f"{name}_t2i_r{rank}"] = 100 * scores.text_to_image[rank]
        if self._with_controls:
            partners = np.array(shuffled_partners(self._owners))
            exchanged = score_retrieval(
                images, texts[partners], self._owners, pool=pools["retrieval"]
            )
            values |= {f"retrieval_r{rank}_shuffled": 100 * exchanged.mean(rank) for rank in RANKS}
        counts["num_pools_retrieval"] = max(1, self._num_images // (self._pool or self._num_images))
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {}

    def write_predictions(self, folder: Path) -> None:
        """Both sets of vectors and the image of each text, as `--metric retrieval` reads."""
        if not self._num_images:
            return
        images, texts = np.concatenate(self._images), np.concatenate(self._texts)
        np.savez(folder / "retrieval.npz", images=images, texts=texts)
        pairs = json.dumps({"image_of_text": self._owners})
        (folder / "retrieval_pairs.json").write_text(pairs)

    def _texts_of(self, record: CocoRecord) -> tuple[str, ...]:
        captions = record.captions or ()
        return captions[: self._texts_per_image] if self._texts_per_image else captions
