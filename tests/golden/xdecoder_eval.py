"""Recorded evaluation runs of the whole model and of its decoder."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from line import Line
from torch import Tensor
from xdecoder_recording import Case, Recording, joined

from xdecoder import postprocess
from xdecoder.caption_stream import CaptionStream
from xdecoder.decoder import decoder_levels
from xdecoder.heads import clamped_similarity, class_logits
from xdecoder.images import normalised
from xdecoder.model import XDecoder
from xdecoder.outputs import DecoderOutput, ImageFeatures
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.tasks.masks import image_masks
from xdecoder.text import prompts


@contextmanager
def watched_states(model: XDecoder) -> Iterator[list[Tensor]]:
    """The states that come into the heads, one tensor per prediction."""
    states: list[Tensor] = []
    handle = model.decoder.heads.register_forward_pre_hook(
        lambda _, inputs: states.append(inputs[0])
    )
    try:
        yield states
    finally:
        handle.remove()


def compare_images(line: Line, model: XDecoder, recorded: Recording) -> None:
    """Normalised images and the maps of the trunk."""
    images, sizes_hw = joined(recorded)
    padded = normalised(
        images,
        sizes_hw,
        mean=model.pixel_mean,
        std=model.pixel_std,
        size_divisibility=model.size_divisibility,
        dtype=model.token_table.dtype,
    )
    if "mid.padded_normalized" in recorded:
        recorded.compare(line, "mid.padded_normalized", padded)
    for stage, map_ in enumerate(model.backbone(padded), start=2):
        recorded.compare(line, f"mid.res{stage}", map_)


def compare_rows(
    line: Line,
    model: XDecoder,
    recorded: Recording,
    features: ImageFeatures,
    output: DecoderOutput,
    states: list[Tensor],
) -> None:
    """States before the heads, and which places the next layer hides from which row."""
    decoder, layout = model.decoder, output.layout
    levels = decoder_levels(
        features.levels,
        features.mask_features,
        decoder.level_embedding.weight,
        decoder.mask_resize,
    )
    for i, layer in enumerate(output.layers):
        prefix = f"mid.dec.call{i:02}."
        recorded.compare(line, prefix + "decoder_out", states[i][:, layout.cross_rows])
        bits = decoder._sees_pixels(layer.mask_embeddings, levels[i % len(levels)], layout)
        # the recording holds the bits before the rule for rows that see nothing
        may_attend = bits.may_attend() & bits.row_any[..., None]
        rows = recorded.tensors[prefix + "attn_mask"].shape[1]
        recorded.compare(line, prefix + "attn_mask", ~may_attend[:, :rows])


def compare_layers(
    line: Line, model: XDecoder, recorded: Recording, output: DecoderOutput, classes: Tensor
) -> None:
    """What every prediction says."""
    last = len(output.layers) - 1
    for i, layer in enumerate(output.layers):
        prefix = "out." if i == last else f"out.aux{i}."
        logits = class_logits(layer.embeddings, classes, model.logit_scale)
        recorded.compare(line, prefix + "pred_captions", layer.embeddings)
        recorded.compare(line, prefix + "pred_logits", logits)
        if prefix + "pred_masks" in recorded:
            masks = output.mask_logits(i, output.layout.pixel_rows)
            recorded.compare(line, prefix + "pred_masks", masks)


@torch.no_grad()
def segmentation(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    names = recorded.fact("vocab")
    texts = [prompts.prompt(name, each) for name in names for each in prompts.TEMPLATES]
    length = recorded["in.vocab_token_ids"].shape[2]
    ids = model.tokenizer(texts, length=length).unflatten(0, (len(names), -1))
    recorded.compare(line, "in.vocab_token_ids", ids)
    classes = prompts.class_embeddings(model, names, templates=prompts.TEMPLATES)
    recorded.compare(line, "in.vocab_emb", classes)
    compare_images(line, model, recorded)
    images, sizes_hw = joined(recorded)
    features = model.encode_images(images, sizes_hw)
    with watched_states(model) as states:
        output = model.decode(features, QuerySet())
    compare_rows(line, model, recorded, features, output, states)
    compare_layers(line, model, recorded, output, classes)
    is_thing = [index < recorded.fact("num_things") for index in range(len(names) - 1)]
    for image, size_hw in enumerate(sizes_hw):
        _compare_maps(line, model, recorded, output, classes, is_thing, image, size_hw)


def _compare_maps(line, model, recorded, output, classes, is_thing, image, size_hw):
    rows = output.layout.objects
    logits = class_logits(output.layers[-1].embeddings[image, rows], classes, model.logit_scale)
    masks = image_masks(
        output,
        rows,
        image_hw=size_hw,
        out_hw=tuple(recorded[f"in.out_hw_{image}"].tolist()),
        resize="bicubic_antialias",
        batch_index=image,
    )
    probs = logits.softmax(-1)
    recorded.compare(line, f"out.sem_seg_{image}", postprocess.semantic(probs, masks))
    settings = {"": _thresholds(recorded), "_loose": _loose_thresholds(recorded)}
    for suffix, (object_threshold, overlap_threshold) in settings.items():
        found = postprocess.panoptic(
            probs,
            masks,
            is_thing=is_thing,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )
        recorded.compare(line, f"out.panoptic{suffix}_{image}", found.ids)
        expected = recorded.fact("segments_info" + suffix)[image]
        line.require(f"segments{suffix}_{image}", segment_facts(found) == expected)
    instances = postprocess.instances(probs, masks, top_k=recorded.fact("topk"), is_thing=is_thing)
    compare_instances(line, recorded, instances, "out.inst_{}" + f"_{image}")


def _thresholds(recorded):
    facts = recorded.fact("thresholds")
    return facts["object_mask"], facts["overlap"]


def _loose_thresholds(recorded):
    """The name of the fact holds the numbers."""
    name = next(key for key in recorded.facts if key.startswith("segments_info_loose("))
    values = dict(re.findall(r"(\w+)=([\d.]+)", name))
    return float(values["object_mask_threshold"]), float(values["overlap_threshold"])


def segment_facts(found: postprocess.Panoptic) -> list[dict]:
    """Segments as the recordings describe them."""
    return [
        {"id": each.id, "isthing": each.is_thing, "category_id": each.class_id}
        for each in found.segments
    ]


def compare_instances(
    line: Line, recorded: Recording, found: postprocess.Instances, name: str
) -> None:
    """Instances as a set: both sides by class, and within a class from the best to the worst.

    name: of the recorded tensors, with a place for what they hold.
    """
    parts = {
        "scores": found.scores,
        "classes": found.class_ids,
        "masks": found.masks,
        "mask_area": found.masks.flatten(1).sum(1).to(found.scores.dtype),
        "boxes_from_masks": found.boxes_xyxy_px.to(found.scores.dtype),
    }
    theirs = _by_class(recorded[name.format("classes")], recorded[name.format("scores")])
    ours = _by_class(found.class_ids, found.scores)
    for part, actual in parts.items():
        key = name.format(part)
        if key in recorded:
            recorded.tensors[key] = recorded.tensors[key][theirs]
            recorded.compare(line, key, actual[ours])


def _by_class(classes: Tensor, scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    return order[classes[order].argsort(stable=True)]


@torch.no_grad()
def referring(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    phrases = [text for texts in recorded.fact("texts") for text in texts]
    token_ids = recorded["in.token_ids"]
    ids = model.tokenizer(phrases, length=token_ids.shape[1])
    recorded.compare(line, "in.token_ids", ids)
    text = model.encode_text(token_ids.long())
    recorded.compare(line, "in.attention_mask", ~text.is_padding)
    recorded.compare(line, "mid.grounding_token_emb", text.tokens)
    recorded.compare(line, "mid.class_emb", text.sentence)
    tokens = text.tokens[~text.is_padding][None]
    is_padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    queries = QuerySet(grounding=TextQueries(tokens=tokens, is_padding=is_padding))
    image = recorded["in.image"]
    features = model.encode_images(image[None])
    with watched_states(model) as states:
        output = model.decode(features, queries)
    compare_rows(line, model, recorded, features, output, states)
    layout, last = output.layout, len(output.layers) - 1
    embeddings = output.layers[last].embeddings
    recorded.compare(line, "mid.pred_captions", embeddings)
    recorded.compare(line, "mid.pred_masks", output.mask_logits(last, layout.pixel_rows))
    rows = embeddings[0, layout.grounding]
    similarity = clamped_similarity(rows, text.sentence, model.logit_scale)
    recorded.compare(line, "mid.similarity", similarity)
    recorded.compare(line, "mid.matched_query", similarity.argmax(0))
    size_hw = (image.shape[1], image.shape[2])
    out_hw = tuple(recorded["in.out_hw"].tolist())
    masks = image_masks(
        output, layout.grounding, image_hw=size_hw, out_hw=out_hw, resize="bicubic_antialias"
    )
    recorded.compare(line, "out.grounding_mask", masks[similarity.argmax(0)])


@torch.no_grad()
def captioning(line: Line, case: Case, recorded: Recording) -> None:
    """Greedy, by decoding everything anew for each token, and with what is kept of it."""
    model = case.model()
    num_steps = recorded.fact("steps")
    images, sizes_hw = joined(recorded)
    features = model.encode_images(images, sizes_hw)
    may_look = _may_look(recorded)
    stream = CaptionStream(model, features, max_tokens=num_steps, may_look=may_look)
    ids = recorded["in.start_token"][:, :1].expand(len(images), 1)
    for step in range(num_steps):
        text = model.encode_text(ids)
        caption = TextQueries(tokens=text.tokens, is_padding=torch.zeros_like(ids).bool())
        queries = QuerySet(caption=caption, caption_may_look=may_look)
        anew = model.decode(features, queries).layers[-1].caption_states[:, -1]
        prefix = f"mid.step{step:02}."
        for states in (anew, stream.states(ids[:, -1])):
            recorded.compare(line, prefix + "caption_state", states)
            wanted = recorded.tensors[prefix + "top5_ids"].shape[1]
            logits, best = (states @ model.token_table.t()).topk(wanted)
            recorded.compare(line, prefix + "top5_ids", best)
            recorded.compare(line, prefix + "top5_logits", logits)
        ids = torch.cat([ids, best[:, :1]], dim=1)
    # what is not written yet are start tokens
    tokens = recorded["in.start_token"].expand(len(images), -1).clone()
    written = min(ids.shape[1], tokens.shape[1])
    tokens[:, :written] = ids[:, :written]
    recorded.compare(line, "out.tokens", tokens)


def _may_look(recorded: Recording) -> Tensor | None:
    """Where captions may look, at the size of the recorded masks: levels take the nearest pixel."""
    hidden = recorded.numbered("in.captioning_mask_")
    return torch.cat(hidden) == 0 if hidden else None


@torch.no_grad()
def retrieval(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    wholes, pools, sentences = [], [], []
    captions = recorded.fact("captions")
    for i, image in enumerate(recorded.numbered("in.image_")):
        features = model.encode_images(image[None])
        output = model.decode(features, QuerySet())
        whole = output.layers[-1].embeddings[:, output.layout.global_query][:, 0]
        token_ids = recorded[f"in.token_ids_{i}"]
        ids = model.tokenizer(captions[i], length=token_ids.shape[1])
        recorded.compare(line, f"in.token_ids_{i}", ids)
        text = model.encode_text(token_ids.long())
        logits = class_logits(whole, recorded["in.vocab_emb"], model.logit_scale)
        recorded.compare(line, f"out.image_embed_decoder_{i}", whole)
        recorded.compare(line, f"out.image_embed_backbone_{i}", features.pooled)
        recorded.compare(line, f"out.text_embeds_{i}", text.sentence)
        recorded.compare(line, f"out.pred_class_{i}", logits[0])
        wholes.append(whole)
        pools.append(features.pooled)
        sentences.append(text.sentence)
    normalize = torch.nn.functional.normalize
    images = [normalize(torch.cat(each), dim=-1) for each in (wholes, pools)]
    texts = normalize(torch.cat(sentences), dim=-1)
    scores = 0.5 * images[0] @ texts.T + 0.5 * images[1] @ texts.T
    recorded.compare(line, "out.ensemble_scores", scores)


@torch.no_grad()
def decoder(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    mask_features = recorded["in.mask_features"]
    features = ImageFeatures(
        levels=tuple(recorded.numbered("in.multi_scale_")),
        mask_features=mask_features,
        pooled=mask_features.mean((2, 3)),
    )
    grounding = None
    if "in.grounding_tokens" in recorded:
        tokens = recorded["in.grounding_tokens"].transpose(0, 1)  # [B, T, C]
        is_padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        grounding = TextQueries(tokens=tokens, is_padding=is_padding)
    with watched_states(model) as states:
        output = model.decode(features, QuerySet(grounding=grounding))
    compare_rows(line, model, recorded, features, output, states)
    compare_layers(line, model, recorded, output, recorded["in.vocab_emb"])
