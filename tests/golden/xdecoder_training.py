"""Recorded training steps of the whole model: losses, assignments, gradients, optimizer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from line import Line
from torch import Tensor, nn
from xdecoder_eval import compare_images, compare_rows, watched_states
from xdecoder_recording import GRADIENT, Case, Recording
from xdecoder_replay import Playback, image_text_batch, loss_config, segmentation_batch

from xdecoder.convert.rules import Conversion
from xdecoder.heads import class_logits, unit
from xdecoder.losses import matching
from xdecoder.losses.mask import pad_masks
from xdecoder.model import XDecoder
from xdecoder.outputs import DecoderOutput, ImageFeatures
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.tasks import build_tasks
from xdecoder.tasks.masks import canvas_size_hw
from xdecoder.tasks.texts import encode_distinct

# their name of a term, and ours
_TERMS = {
    "mask_ce": ("segmentation/mask_ce",),
    "mask_bce": ("segmentation/mask_bce",),
    "mask_dice": ("segmentation/mask_dice",),
    "caption": ("segmentation/nouns",),
    "grounding_ce": ("segmentation/grounding_ce",),
    "grounding_bce": ("segmentation/grounding_bce",),
    "grounding_dice": ("segmentation/grounding_dice",),
    "captioning": ("image_text/captioning",),
    "retrieval_decoder": ("image_text/retrieval", "image_text/retrieval_alignment"),
    "retrieval_backbone": ("image_text/retrieval_backbone",),
}


@contextmanager
def _watched_assignments() -> Iterator[list[tuple]]:
    """Every assignment problem and its solution, in the order of the calls."""
    solve, calls = matching.linear_sum_assignment, []

    def watched(cost):
        rows, columns = solve(cost)
        calls.append((cost, rows, columns))
        return rows, columns

    with mock.patch.object(matching, "linear_sum_assignment", watched):
        yield calls


@contextmanager
def _watched_decoding(model: XDecoder) -> Iterator[list[tuple[ImageFeatures, DecoderOutput]]]:
    runs: list[tuple[ImageFeatures, DecoderOutput]] = []
    handle = model.decoder.register_forward_hook(
        lambda _, inputs, output: runs.append((inputs[0], output))
    )
    try:
        yield runs
    finally:
        handle.remove()


def segmentation(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model().train()
    task, _ = build_tasks(loss_config(case))
    batch, questions = segmentation_batch(recorded)
    draws = Playback(recorded.numbered("rand."))
    with (
        watched_states(model) as states,
        _watched_decoding(model) as runs,
        _watched_assignments() as solved,
    ):
        terms = task.losses_of(model, batch, questions, draws)
    line.require("all draws used", draws.num_left == 0)
    ((features, output),) = runs
    with torch.no_grad():
        compare_images(line, model, recorded)
        compare_rows(line, model, recorded, features, output, states)
        _compare_targets(line, model, recorded, batch, questions, output)
        _compare_inputs(line, model, recorded, questions, output)
    for i, (cost, rows, columns) in enumerate(solved):
        recorded.compare(line, f"lsa.{i:03}.cost", torch.from_numpy(cost))
        recorded.compare(line, f"lsa.{i:03}.rows", torch.from_numpy(rows))
        recorded.compare(line, f"lsa.{i:03}.cols", torch.from_numpy(columns))
    _compare_losses(line, recorded, terms, len(output.layers))
    _compare_gradients(line, case, model, recorded, terms)


def _compare_targets(line, model, recorded, batch, questions, output):
    """Token ids, and the targets as the official criterion saw them."""
    canvas_hw = canvas_size_hw(output)
    length = recorded["in.class_token_ids"].shape[1]
    ids = model.tokenizer(questions.prompts, length=length)
    recorded.compare(line, "in.class_token_ids", ids)
    texts = encode_distinct(model, questions.texts())
    classes = unit(texts.sentences(questions.prompts))
    recorded.compare(line, "tgt.class_embeddings", classes)
    recorded.compare(line, "tgt.logit_scale", model.logit_scale[0])
    for i, (segments, asked, nouns) in enumerate(
        zip(batch.segments, questions.asked, questions.nouns, strict=True)
    ):
        noun_ids = model.tokenizer(nouns.texts, length=length)
        recorded.compare(line, f"in.caption_noun_token_ids_{i}", noun_ids)
        asked_ids = model.tokenizer(asked.texts, length=length)
        recorded.compare(line, f"in.grounding_token_ids_{i}", asked_ids)
        is_padding = model.encode_text(asked_ids).is_padding
        recorded.compare(line, f"in.grounding_attention_mask_{i}", ~is_padding)
        recorded.compare(line, f"tgt.masks_{i}", pad_masks(segments.masks, canvas_hw))
        recorded.compare(line, f"tgt.grounding_masks_{i}", pad_masks(asked.masks, canvas_hw))
        recorded.compare(line, f"tgt.captions_{i}", unit(texts.sentences(nouns.texts)))
        recorded.compare(line, f"tgt.grounding_class_embs_{i}", texts.sentences(asked.texts))
        tokens = texts.grounding([asked.distinct_texts()]).tokens[0]
        recorded.compare(line, f"tgt.grounding_query_embs_{i}", tokens)


def _compare_inputs(line, model, recorded, questions, output):
    """What the official criterion compared with the targets."""
    layout, last = output.layout, len(output.layers) - 1
    classes = unit(encode_distinct(model, questions.prompts).sentences(questions.prompts))
    for i, layer in enumerate(output.layers):
        prefix = "crit_in." if i == last else f"crit_in.aux{i}."
        latents, grounding = layer.embeddings[:, layout.latents], layout.grounding
        logits = class_logits(latents, classes, model.logit_scale)
        recorded.compare(line, prefix + "pred_captions", latents)
        recorded.compare(line, prefix + "pred_logits", logits)
        recorded.compare(line, prefix + "pred_masks", output.mask_logits(i, layout.latents))
        recorded.compare(line, prefix + "pred_gmasks", output.mask_logits(i, grounding))
        recorded.compare(line, prefix + "pred_gtexts", layer.embeddings[:, grounding])


def image_text(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model().train()
    _, task = build_tasks(loss_config(case))
    batch = image_text_batch(recorded)
    terms = task.losses(model, batch, Playback([]))
    with torch.no_grad():
        compare_images(line, model, recorded)
        _compare_captions(line, model, recorded, batch)
    _compare_losses(line, recorded, terms, len(model.decoder.layers) + 1)
    _compare_gradients(line, case, model, recorded, terms)


def _compare_captions(line, model, recorded, batch):
    """A run with captions padded to the context, as the recorded one; the task cuts them."""
    length = recorded["in.token_ids_0"].shape[1]
    ids = model.tokenizer(batch.captions, length=length)
    text = model.encode_text(ids)
    for i in range(len(ids)):
        row = slice(i, i + 1)
        recorded.compare(line, f"in.token_ids_{i}", ids[row])
        recorded.compare(line, f"in.attention_mask_{i}", ~text.is_padding[row])
        recorded.compare(line, f"tgt.caption_tokenids_{i}", ids[row])
        recorded.compare(line, f"tgt.caption_mask_{i}", ~text.is_padding[row])
        recorded.compare(line, f"tgt.caption_proj_{i}", text.sentence[row])
        recorded.compare(line, f"tgt.caption_tokens_{i}", text.tokens[row])
    features = model.encode_images(batch.images, batch.valid_sizes_hw)
    everywhere = torch.zeros_like(text.is_padding)
    queries = QuerySet(caption=TextQueries(tokens=text.tokens, is_padding=everywhere))
    with watched_states(model) as states:
        output = model.decode(features, queries)
    compare_rows(line, model, recorded, features, output, states)
    last = len(output.layers) - 1
    for i, layer in enumerate(output.layers):
        prefix = "crit_in." if i == last else f"crit_in.aux{i}."
        recorded.compare(line, prefix + "pred_captions", layer.embeddings)
        recorded.compare(line, prefix + "pred_captionings", layer.caption_states)


def _compare_losses(
    line: Line, recorded: Recording, terms: dict[str, Tensor], num_predictions: int
) -> None:
    """Terms, counted from the last prediction back; a term that we leave out must be zero."""
    weights = recorded.fact("weight_dict")
    used = set()
    for key in [key for key in recorded.tensors if key.startswith("loss_raw.")]:
        name = key.removeprefix("loss_raw.")
        term, _, index = name.removeprefix("loss_").rpartition("_")
        place = num_predictions - 1 - int(index)
        keys = [f"{ours}/{place}" for ours in _TERMS[term]]
        values = [terms[ours] for ours in keys if ours in terms]
        used |= set(keys) & terms.keys()
        total = torch.stack(values).sum() if values else torch.zeros(())
        recorded.compare(line, key, total / weights.get(name, 1.0))
        if f"loss_weighted.{name}" in recorded:
            recorded.compare(line, f"loss_weighted.{name}", total)
    line.require("no terms beyond the recorded ones", used == terms.keys())
    recorded.compare(line, "loss_total", torch.stack(list(terms.values())).sum())


def _compare_gradients(line, case, model, recorded, terms) -> None:
    model.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    parameters = dict(model.named_parameters())
    facts = recorded.fact("grad_norms")
    for theirs, ours, change in case.conversion.report:
        if theirs not in facts:
            line.require(f"{theirs} is no parameter", change == "drop")
            continue
        gradient = parameters[ours].grad
        if facts[theirs] is None:
            is_silent = gradient is None or not gradient.any()
            line.require(f"{theirs} has no gradient", is_silent)
            continue
        gradient = _as_theirs(gradient, change)
        _compare_norms(line, recorded, theirs, gradient, facts[theirs])
        if f"grad.{theirs}" in recorded:
            recorded.compare(line, f"grad.{theirs}", gradient, factor=GRADIENT)


def _as_theirs(tensor: Tensor, change: str) -> Tensor:
    if change == "transpose":
        return tensor.t()
    return tensor.reshape(()) if change == "vector" else tensor


def _compare_norms(line, recorded, theirs, gradient, fact) -> None:
    allowed = GRADIENT * recorded.tolerance * fact["l2"]
    line.compare(f"norm of {theirs}", gradient.double().norm(), fact["l2"], atol=allowed)
    # n numbers that are each off by a share of their root mean square, l2 / sqrt(n)
    allowed *= gradient.numel() ** 0.5
    line.compare(f"sum of {theirs}", gradient.double().sum(), fact["sum"], atol=allowed)


def steps(line: Line, case: Case, recorded: Recording) -> None:
    """Optimizer steps on both recorded batches, with the same draws in every step."""
    model = case.model().train()
    segmentation_task, image_text_task = build_tasks(loss_config(case))
    seg_recording, vlp_recording = case.read("full_train_seg"), case.read("full_train_vlp")
    batch, questions = segmentation_batch(seg_recording)
    pairs = image_text_batch(vlp_recording)
    optimizer = _official_optimizer(case, model, recorded)
    totals: dict[str, list[Tensor]] = {"total_seg": [], "total_vlp": []}
    norms = []
    num_totals = len(recorded.tensors["total_seg"])
    for step in range(num_totals):
        draws = Playback(seg_recording.numbered("rand."))
        found = {
            "total_seg": segmentation_task.losses_of(model, batch, questions, draws),
            "total_vlp": image_text_task.losses(model, pairs, draws),
        }
        sums = {name: torch.stack(list(terms.values())).sum() for name, terms in found.items()}
        for name, total in sums.items():
            totals[name].append(total.detach())
        if step == num_totals - 1:
            break
        optimizer.zero_grad()
        torch.stack(list(sums.values())).sum().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), recorded.fact("clip")))
        optimizer.step()
    for name, values in totals.items():
        recorded.compare(line, name, torch.stack(values), factor=GRADIENT)
    recorded.compare(line, "grad_norm_before_clip", torch.stack(norms), factor=GRADIENT)
    parameters = dict(model.named_parameters())
    for theirs, ours, change in case.conversion.report:
        if f"param_after.{theirs}" in recorded:
            after = _as_theirs(parameters[ours].detach(), change)
            recorded.compare(line, f"param_after.{theirs}", after, factor=GRADIENT)


def _official_optimizer(case: Case, model: XDecoder, recorded: Recording) -> torch.optim.AdamW:
    rates = official_rates(
        model,
        case.conversion,
        multipliers=recorded.fact("lr_multiplier"),
        decay=recorded.fact("weight_decay"),
        norm_decay=case.settings["SOLVER"]["WEIGHT_DECAY_NORM"],
        table_decay=case.settings["SOLVER"]["WEIGHT_DECAY_EMBED"],
    )
    theirs_of = {ours: theirs for theirs, ours, _ in case.conversion.report}
    groups = []
    for name, parameter in model.named_parameters():
        multiplier, decay = rates[theirs_of[name]]
        rate = multiplier * recorded.fact("base_lr")
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def official_rates(
    model: nn.Module,
    conversion: Conversion,
    *,
    multipliers: dict[str, float],
    decay: float,
    norm_decay: float,
    table_decay: float,
) -> dict[str, tuple[float, float]]:
    """The factor on the learning rate and the decay of each parameter, under their names."""
    theirs_of = {ours: theirs for theirs, ours, _ in conversion.report}
    rates = {}
    for prefix, module in model.named_modules():
        own = decay
        # the norms of the text encoder are a class of its own there, and decay
        is_norm = isinstance(module, nn.LayerNorm | nn.GroupNorm)
        if is_norm and not prefix.startswith("text_encoder."):
            own = norm_decay
        if isinstance(module, nn.Embedding):
            own = table_decay
        for name, _ in module.named_parameters(recurse=False):
            theirs = theirs_of[f"{prefix}.{name}" if prefix else name]
            # parts of the name as a whole: `backbone_proj` counts as backbone
            factors = [factor for part, factor in multipliers.items() if part in theirs]
            rates[theirs] = (math.prod(factors), own)
    return rates
