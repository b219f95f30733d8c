"""Losses against numbers recorded from the official X-Decoder code (specs: golden/xdecoder).

Deviations are measured in units of the recorded tensor's RMS.
"""

import json

import torch
from torch import Tensor

from xdecoder.losses.caption import caption_terms
from xdecoder.losses.contrastive import (
    alignment_terms,
    contrastive_terms,
    first_of_equals,
    similarity_scale,
)
from xdecoder.losses.criterion import grounding_terms, label_terms, label_weight
from xdecoder.losses.draws import RecordedDraws
from xdecoder.losses.mask import MaskTerms, pairwise_terms, point_terms, sampled_mask_terms
from xdecoder.losses.matching import Matching, MatchingCosts, match, matching_cost, pad_targets
from xdecoder.losses.points import PointSampling, sample_points, uncertain_points

# the recordings are float64, rounded to float32; the official float32 run is within 1e-5 of them
TOLERANCE = 1e-4


class Recording:
    """One recorded file: tensors by name, and what is not a tensor."""

    def __init__(self, golden) -> None:
        self.tensors, self.metadata = golden

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def numbered(self, prefix: str) -> list[Tensor]:
        keys = sorted(key for key in self.tensors if key.removeprefix(prefix).isdigit())
        return [self.tensors[key] for key in keys]


def assert_close(actual: Tensor, recorded: Tensor) -> None:
    deviation = (actual.double() - recorded.double()).abs().max()
    rms = recorded.double().square().mean().sqrt()
    assert deviation <= TOLERANCE * rms, f"{float(deviation / rms):.2e} of RMS"


def test_matching_gives_the_recorded_costs_and_pairs(golden):
    recording = Recording(golden("sub_matcher"))
    probs = recording["in.pred_logits"].softmax(-1)
    costs = MatchingCosts()
    for image in range(2):
        labels, points = recording[f"in.labels_{image}"], recording[f"in.points_{image}"]
        logits = sample_points(recording["in.pred_masks"][image : image + 1], points)
        targets = sample_points(recording[f"in.masks_{image}"][None].float(), points)
        label_probs = probs[image : image + 1, :, labels]
        cost = matching_cost(label_probs, logits, targets, costs)
        assert_close(cost[0], recording[f"out.cost_{image}"])
        # as many dimensions as queries: each query's embedding picks its own map
        matching = match(
            label_probs=label_probs[None],
            mask_embeddings=torch.eye(logits.shape[1])[None, None],
            point_features=logits,
            point_targets=targets,
            counts=(len(labels),),
            costs=costs,
        )
        expected = torch.zeros(len(labels), dtype=torch.long)
        expected[recording[f"out.cols_{image}"]] = recording[f"out.rows_{image}"]
        assert torch.equal(matching.query_index[0], expected)


def test_points_and_mask_terms_are_the_recorded_ones(golden):
    recording = Recording(golden("sub_point_sampling"))
    sampling = PointSampling(num_points=int(recording.metadata["num_points"]))
    draws = [recording["in.rand_0"], recording["in.rand_1"]]
    logits, targets = recording["in.logits"], recording["in.target_masks"][:, 0]
    points = uncertain_points(logits, RecordedDraws(draws), sampling)[:, 0]
    assert torch.equal(_sorted_rows(points), _sorted_rows(recording["out.point_coords"]))
    terms = sampled_mask_terms(logits, targets, RecordedDraws(draws), sampling)
    num_masks = float(recording.metadata["num_masks"])
    assert_close(terms.bce.sum() / num_masks, recording["out.sigmoid_ce"])
    assert_close(terms.dice.sum() / num_masks, recording["out.dice"])
    at_points, labels = recording["out.point_logits"][:, 0], recording["out.point_labels"][:, 0]
    pairs = pairwise_terms(at_points, labels)
    assert_close(pairs.bce, recording["out.batch_sigmoid_ce"])
    assert_close(pairs.dice, recording["out.batch_dice"])
    assert_close(point_terms(at_points, labels).dice.sum() / num_masks, recording["out.dice"])


def _sorted_rows(points: Tensor) -> Tensor:
    order = points[..., 0].argsort(dim=-1)
    return points.gather(1, order.unsqueeze(2).expand_as(points))


def test_contrastive_terms_are_the_recorded_ones(golden):
    recording = Recording(golden("sub_contrastive_losses"))
    images, texts, ids = recording["in.v"], recording["in.t"], recording["in.hash"]
    scale = similarity_scale(recording["in.logit_scale"], 100.0)
    columns = first_of_equals(ids)
    is_same = ids[:, None] == ids[columns][None]
    multi = contrastive_terms(images[None], texts[columns], is_same, scale, first_weight=0.7)
    assert_close(multi[0], recording["out.ql_multi_contrastive"])
    is_self = torch.eye(len(images), dtype=torch.bool)
    single = contrastive_terms(images[None], texts, is_self, scale)
    assert_close(single[0], recording["out.image_text_contrastive"])


class RecordedStep:
    """The official segmentation step: outputs, targets and draws of every prediction."""

    def __init__(self, golden) -> None:
        self.recording = Recording(golden)
        self.draws = RecordedDraws(self.recording.numbered("rand."))
        points = self.recording["rand.000"].shape[1]
        self.sampling = PointSampling(num_points=points)
        pairs = self.recording.metadata[
            "loss_calls[loss,layer_id(0=last),matched_indices,num_masks]"
        ]
        self.num_predictions = 1 + max(call[1] for call in json.loads(pairs))

    def output(self, name: str, index: int) -> Tensor:
        """Predictions are counted from the last decoder layer back to the learned queries."""
        if index == 0:
            return self.recording[f"crit_in.{name}"]
        return self.recording[f"crit_in.aux{self.num_predictions - 1 - index}.{name}"]

    def match(self, label_probs: Tensor, maps: Tensor, masks: list[Tensor]) -> Matching:
        num_points = self.sampling.num_points
        points = torch.cat([self.draws.uniform(1, num_points, 2) for _ in masks])
        logits = sample_points(maps, points)
        targets = [
            sample_points(m[None].float(), p[None])[0] for m, p in zip(masks, points, strict=True)
        ]
        return match(
            label_probs=label_probs[None],
            mask_embeddings=torch.eye(maps.shape[1]).expand(1, len(maps), -1, -1),
            point_features=logits,
            point_targets=torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
            counts=[len(m) for m in masks],
            costs=MatchingCosts(),
        )

    def mask_terms(self, maps: Tensor, matching: Matching, masks: list[Tensor]) -> MaskTerms:
        """The official code draws for masks in the order of their queries."""
        order = (matching.image_index * maps.shape[1] + matching.query_index[0]).argsort()
        rows = maps[matching.image_index[order], matching.query_index[0, order]]
        targets = torch.cat(masks)[order]
        return sampled_mask_terms(rows.unsqueeze(1), targets, self.draws, self.sampling)


def test_segmentation_losses_are_the_recorded_ones_at_every_prediction(golden, official):
    step = RecordedStep(golden("full_train_seg"))
    recording = step.recording
    masks, phrase_masks = (
        recording.numbered("tgt.masks_"),
        recording.numbered("tgt.grounding_masks_"),
    )
    class_ids = torch.cat(recording.numbered("in.gt_classes_"))
    counts = [len(m) for m in masks]
    text_ids = torch.cat(recording.numbered("in.grounding_hash_"))
    texts = pad_targets(
        torch.cat(recording.numbered("tgt.grounding_class_embs_")), [len(m) for m in phrase_masks]
    )
    # weight of a phrase in "text" and in "class" mode, over the images of the batch
    modes = {"text": 2.0, "class": 0.5}
    weights = torch.tensor(
        [modes[mode] for mode in json.loads(recording.metadata["grounding_modes"])]
    )
    for index in range(step.num_predictions):
        logits, maps = step.output("pred_logits", index), step.output("pred_masks", index)
        ids = pad_targets(class_ids, counts)
        probs = logits.softmax(-1).gather(2, ids[:, None].expand(-1, logits.shape[1], -1))
        matching = step.match(probs, maps, masks)
        ce = label_terms(logits.log_softmax(-1)[None], class_ids, matching, 0.1)
        ce = ce / label_weight(counts, logits.shape[1], 0.1)
        assert_close(ce[0], recording[f"loss_raw.loss_mask_ce_{index}"])
        terms = step.mask_terms(maps, matching, masks)
        assert_close(terms.bce.sum() / sum(counts), recording[f"loss_raw.loss_mask_bce_{index}"])
        assert_close(terms.dice.sum() / sum(counts), recording[f"loss_raw.loss_mask_dice_{index}"])
        if index >= official["DECODER"]["TOP_GROUNDING_LAYERS"]:
            continue
        maps, rows = step.output("pred_gmasks", index), step.output("pred_gtexts", index)
        scale = similarity_scale(recording["tgt.logit_scale"], 100.0)
        similarity = (
            scale * torch.nn.functional.normalize(rows, dim=-1) @ _unit(texts).transpose(1, 2)
        )
        matching = step.match(similarity.softmax(1), maps, phrase_masks)
        slots = torch.cat([torch.arange(len(m)) for m in phrase_masks])
        flat = similarity[matching.image_index, :, slots].unsqueeze(1)
        ce = grounding_terms(flat, matching, text_ids)[:, 0]
        per_image = torch.stack([ce[matching.image_index == i].mean() for i in range(len(masks))])
        assert_close((weights * per_image).mean(), recording[f"loss_raw.loss_grounding_ce_{index}"])
        terms = step.mask_terms(maps, matching, phrase_masks)
        count = len(text_ids)
        assert_close(terms.bce.sum() / count, recording[f"loss_raw.loss_grounding_bce_{index}"])
        assert_close(terms.dice.sum() / count, recording[f"loss_raw.loss_grounding_dice_{index}"])


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def test_caption_and_retrieval_losses_are_the_recorded_ones(golden, official):
    recording = Recording(golden("full_train_vlp"))
    weights = golden("weights").tensors
    prefix = "sem_seg_head.predictor.lang_encoder."
    table = weights[prefix + "lang_encoder.token_embedding.weight"]
    scale = similarity_scale(weights[prefix + "logit_scale"], 100.0)
    ids = torch.cat(recording.numbered("tgt.caption_tokenids_"))
    is_padding = torch.cat(recording.numbered("tgt.caption_mask_")) == 0
    sentences = torch.cat(recording.numbered("tgt.caption_proj_"))
    tokens = torch.cat(recording.numbered("tgt.caption_tokens_"))
    is_own = torch.eye(len(sentences), dtype=torch.bool)
    num_predictions = sum(key.startswith("loss_raw.loss_capt") for key in recording.tensors)
    for index in range(num_predictions):
        part = "crit_in." if index == 0 else f"crit_in.aux{num_predictions - 1 - index}."
        if index < official["DECODER"]["TOP_CAPTIONING_LAYERS"]:
            states = recording[part + "pred_captionings"][None]
            total = caption_terms(states, table, ids, is_padding)[0]
            count = int((~is_padding[:, 1:]).sum())
            assert_close(total / (count + 1), recording[f"loss_raw.loss_captioning_{index}"])
        if index < official["DECODER"]["TOP_RETRIEVAL_LAYERS"]:
            rows = recording[part + "pred_captions"][None]
            contrast = contrastive_terms(rows[:, :, -1], sentences, is_own, scale)
            aligned = alignment_terms(rows[:, :, :-1], tokens, is_padding, scale)
            recorded = recording[f"loss_raw.loss_retrieval_decoder_{index}"]
            assert_close((contrast + 0.5 * aligned)[0], recorded)
