"""Recorded parts of the model, each with inputs and weights of its own."""

import re

import numpy as np
import torch
from line import Line
from torch import Tensor
from xdecoder_eval import compare_instances, segment_facts
from xdecoder_recording import GRADIENT, Case, Recording, focal_net

from kernels.masked_xattn import mask_bits, resize_mask_features
from kernels.msda import multi_scale_deformable_attention
from pipelines.evaluation.referring import THRESHOLDS, ReferringOverlap
from pipelines.evaluation.retrieval import score_retrieval
from xdecoder import postprocess
from xdecoder.backbones.davit import DaVit
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import FOCAL, FPN_TRANSFORMER, MSDEFORM, davit
from xdecoder.heads import clamped_similarity, class_logits, unit
from xdecoder.layers import DeformableAttention, sine_positions
from xdecoder.losses.contrastive import contrastive_terms, first_of_equals, similarity_scale
from xdecoder.losses.draws import RecordedDraws
from xdecoder.losses.mask import pairwise_terms, point_terms, sampled_mask_terms
from xdecoder.losses.matching import MatchingCosts, cheapest_pairs, matching_cost
from xdecoder.losses.points import PointSampling, sample_points, uncertain_points
from xdecoder.pixel_decoder import FpnTransformer, MsDeform
from xdecoder.queries import QueryLayout
from xdecoder.text import prompts

# stages of a trunk, strides 4 to 32
_STAGES = (2, 3, 4, 5)


@torch.no_grad()
def focal_trunk(line: Line, case: Case, recorded: Recording) -> None:
    trunk = focal_net(recorded.fact("config"), line.name.removeprefix("sub_backbone_"))
    trunk.load_state_dict(convert(recorded.part("weight."), FOCAL).state)
    # the sides of the second image are no multiples of the strides
    for i, image in enumerate(recorded.numbered("in.x_")):
        for stage, map_ in zip(_STAGES, trunk.to(case.dtype)(image), strict=True):
            recorded.compare(line, f"out.res{stage}_{i}", map_)


@torch.no_grad()
def davit_trunk(line: Line, case: Case, recorded: Recording) -> None:
    settings = recorded.fact("config")
    trunk = DaVit(
        settings["DIM_EMBED"],
        depths=settings["DEPTHS"],
        num_heads=settings["NUM_HEADS"],
        num_groups=settings["NUM_GROUPS"],
        patch_sizes=settings["PATCH_SIZE"],
        patch_paddings=settings["PATCH_PADDING"],
    )
    rules = davit(tuple(settings["DEPTHS"]))
    trunk.load_state_dict(convert(recorded.part("weight."), rules).state)
    for stage, map_ in zip(_STAGES, trunk.to(case.dtype)(recorded["in.x"]), strict=True):
        recorded.compare(line, f"out.res{stage}", map_)


@torch.no_grad()
def pixel_decoder(line: Line, case: Case, recorded: Recording) -> None:
    maps = [recorded[f"in.res{stage}"] for stage in _STAGES]
    weights = recorded.part("weight.")
    settings = {
        "dim": recorded.tensors["out.multi_scale_0"].shape[1],
        "mask_dim": recorded.tensors["out.mask_features"].shape[1],
        "num_layers": recorded.fact("enc_layers"),
        "num_heads": recorded.fact("nheads"),
        "ffn_dim": recorded.fact("dim_feedforward"),
    }
    in_dims = [map_.shape[1] for map_ in maps]
    if line.name.endswith("fpn"):
        rules, module = FPN_TRANSFORMER, FpnTransformer(in_dims, **settings)
    else:
        offsets = weights["transformer.encoder.layers.0.self_attn.sampling_offsets.bias"]
        num_points = len(offsets) // (2 * (len(maps) - 1) * settings["num_heads"])
        rules, module = MSDEFORM, MsDeform(in_dims, num_points=num_points, **settings)
    module.load_state_dict(convert(weights, rules).state)
    pyramid = module.to(case.dtype)(maps)
    recorded.compare(line, "out.mask_features", pyramid.mask_features)
    # the deformable one calls its coarsest level so
    memory = pyramid.levels[0] if pyramid.memory is None else pyramid.memory
    recorded.compare(line, "out.transformer_encoder_features", memory)
    for i, level in enumerate(pyramid.levels):
        recorded.compare(line, f"out.multi_scale_{i}", level)


def deformable_attention(line: Line, case: Case, recorded: Recording) -> None:
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [recorded[f"in.{name}"].clone().requires_grad_() for name in names]
    sizes_hw = [(height, width) for height, width in recorded["in.spatial_shapes"].tolist()]
    starts = np.cumsum([0, *(height * width for height, width in sizes_hw)])[:-1]
    recorded.compare(line, "in.level_start_index", torch.tensor(starts))
    out = multi_scale_deformable_attention(inputs[0], sizes_hw, *inputs[1:])
    recorded.compare(line, "out.output", out)
    out.backward(recorded["in.grad_output"])
    for name, tensor in zip(names, inputs, strict=True):
        recorded.compare(line, f"out.grad_{name}", tensor.grad, factor=GRADIENT)
    _compare_module(line, case, recorded, sizes_hw)


@torch.no_grad()
def _compare_module(line, case, recorded, sizes_hw):
    weights = recorded.part("module.weight.")
    _, _, num_heads, num_levels, num_points, _ = recorded.tensors["in.sampling_locations"].shape
    query, source = recorded["module.in.query"], recorded["module.in.src"]
    module = DeformableAttention(
        query.shape[2], num_heads=num_heads, num_levels=num_levels, num_points=num_points
    )
    module.load_state_dict(weights)
    is_padding = recorded["module.in.padding_mask"].bool()
    reference = recorded["module.in.reference_points"]
    # our pyramids have no padded places; the recorded module gives them values of zero
    module.value_proj.register_forward_hook(
        lambda _, inputs, values: values.masked_fill(is_padding[..., None], 0.0)
    )
    out = module.to(case.dtype)(query, source, sizes_hw, reference)
    recorded.compare(line, "module.out", out)


def positions(line: Line, case: Case, recorded: Recording) -> None:
    for key in recorded.numbered_keys("out.pos_"):
        shape = recorded[key.replace("out.pos", "in.shape")].tolist()
        dim = recorded.tensors[key].shape[1]
        size_hw = (shape[-2], shape[-1])
        like = torch.empty(0, dtype=case.dtype)
        encoded = sine_positions(size_hw, dim, like=like).transpose(1, 2).unflatten(2, size_hw)
        recorded.compare(line, key, encoded.expand(shape[0], -1, -1, -1))


def visibility(line: Line, case: Case, recorded: Recording) -> None:
    num_latents, num_caption = recorded.fact("num_queries") - 1, recorded.fact("context_length")
    for key in recorded.tensors:
        layout = QueryLayout(num_latents=num_latents, num_caption=num_caption)
        if tokens := re.search(r"_(\d+)tokens", key):
            layout = QueryLayout(
                num_latents=num_latents,
                num_grounding=num_latents,
                num_phrase_tokens=int(tokens.group(1)),
            )
        recorded.compare(line, key, ~layout.may_attend())


@torch.no_grad()
def texts(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    token_ids = recorded["in.token_ids"]
    length = token_ids.shape[1]
    written = recorded.fact("texts")
    recorded.compare(line, "in.token_ids", model.tokenizer(written, length=length))
    # without padding to the context, a sentence is the same
    short = model.encode_text(model.tokenizer(written[:-1])).sentence
    recorded.compare(line, "out.class_emb_norm0", _with_rest(recorded, short))
    features = model.encode_text(token_ids.long())
    recorded.compare(line, "in.attention_mask", ~features.is_padding)
    recorded.compare(line, "out.token_emb_norm0", features.tokens)
    recorded.compare(line, "out.token_emb_norm1", unit(features.tokens))
    recorded.compare(line, "out.class_emb_norm0", features.sentence)
    recorded.compare(line, "out.class_emb_norm1", unit(features.sentence))
    recorded.compare(line, "out.forward_language", unit(features.sentence))
    before = _before_projection(model.text_encoder, token_ids)
    recorded.compare(line, "out.last_hidden_state", before)
    names, plain = recorded.fact("mean81_classes"), recorded.fact("noprompt")
    prompted = [prompts.prompt(name, each) for name in names for each in prompts.TEMPLATES]
    ids = model.tokenizer(prompted, length=length).unflatten(0, (len(names), -1))
    recorded.compare(line, "in.mean81_token_ids", ids)
    recorded.compare(line, "in.noprompt_token_ids", model.tokenizer(plain, length=length))
    vectors = prompts.class_embeddings(model, names, templates=prompts.TEMPLATES)
    recorded.compare(line, "out.mean81", vectors)
    recorded.compare(line, "out.noprompt", prompts.sentence_embeddings(model, plain))
    rows, scale = recorded["in.v_emb"], recorded["in.logit_scale"].reshape(1)
    named = recorded.tensors["out.mean81"]
    recorded.compare(line, "out.compute_similarity", class_logits(rows, named, scale))
    recorded.compare(line, "out.vl_similarity", clamped_similarity(rows[0], named, scale))


def _with_rest(recorded: Recording, sentences: Tensor) -> Tensor:
    """The recorded sentences, the first ones replaced."""
    whole = recorded.tensors["out.class_emb_norm0"].clone()
    whole[: len(sentences)] = sentences
    return whole


def _before_projection(encoder: torch.nn.Module, token_ids: Tensor) -> Tensor:
    """What the text encoder projects."""
    seen: list[Tensor] = []
    handle = encoder.projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(token_ids.long())
    handle.remove()
    return seen[0]


@torch.no_grad()
def prediction_head(line: Line, case: Case, recorded: Recording) -> None:
    model = case.model()
    states = recorded["in.decoder_state"].transpose(0, 1)  # [B, R, C]
    layout = QueryLayout(num_latents=states.shape[1] - 1)
    prediction = model.decoder.heads(states, layout)
    features = recorded["in.mask_features"]
    masks = torch.einsum("bqc,bchw->bqhw", prediction.mask_embeddings, features)
    logits = class_logits(prediction.embeddings, recorded["in.vocab_emb"], model.logit_scale)
    recorded.compare(line, "out.caption", prediction.embeddings)
    recorded.compare(line, "out.class", logits)
    recorded.compare(line, "out.mask", masks)
    size = re.search(r"attn_mask_target_size=\((\d+), *(\d+)\)", recorded.facts["scenario"])
    size_hw = (int(size.group(1)), int(size.group(2)))
    resized = resize_mask_features(features, size_hw, mode=model.decoder.mask_resize)
    bits = mask_bits(prediction.mask_embeddings, resized)
    may_attend = bits.may_attend() & bits.row_any[..., None]
    # the recording has a copy for each head
    num_heads = len(recorded.tensors["out.attn_mask"]) // len(states)
    recorded.compare(line, "out.attn_mask", ~may_attend.repeat_interleave(num_heads, dim=0))


def matcher(line: Line, case: Case, recorded: Recording) -> None:
    costs = MatchingCosts(
        label=recorded.fact("cost_class"),
        bce=recorded.fact("cost_mask"),
        dice=recorded.fact("cost_dice"),
    )
    probs, maps = recorded["in.pred_logits"].softmax(-1), recorded["in.pred_masks"]
    for image in range(len(maps)):
        labels, points = recorded[f"in.labels_{image}"], recorded[f"in.points_{image}"]
        logits = sample_points(maps[image : image + 1], points)
        masks = recorded[f"in.masks_{image}"][None].to(logits.dtype)
        targets = sample_points(masks, points)
        cost = matching_cost(probs[image : image + 1, :, labels], logits, targets, costs)[0]
        recorded.compare(line, f"out.cost_{image}", cost)
        rows, columns = cheapest_pairs(cost)
        recorded.compare(line, f"out.rows_{image}", rows)
        recorded.compare(line, f"out.cols_{image}", columns)


def point_sampling(line: Line, case: Case, recorded: Recording) -> None:
    sampling = PointSampling(
        num_points=recorded.fact("num_points"),
        oversample=recorded.fact("oversample_ratio"),
        importance=recorded.fact("importance_sample_ratio"),
    )
    draws = recorded.numbered("in.rand_")
    logits, targets = recorded["in.logits"], recorded["in.target_masks"][:, 0]
    points = uncertain_points(logits, RecordedDraws(draws), sampling)[:, 0]
    # the most uncertain points stand in no order: ours as theirs, by their first coordinate
    order = _place_of(points, recorded.tensors["out.point_coords"])
    points = points.gather(1, order.unsqueeze(2).expand_as(points))
    recorded.compare(line, "out.point_coords", points)
    at_points = sample_points(logits, points)
    recorded.compare(line, "out.point_logits", at_points)
    labels = sample_points(targets[:, None], points)
    recorded.compare(line, "out.point_labels", labels)
    num_masks = recorded.fact("num_masks")
    terms = sampled_mask_terms(logits, targets, RecordedDraws(draws), sampling)
    recorded.compare(line, "out.sigmoid_ce", terms.bce.sum() / num_masks)
    recorded.compare(line, "out.dice", terms.dice.sum() / num_masks)
    single = point_terms(at_points[:, 0], labels[:, 0])
    recorded.compare(line, "out.dice", single.dice.sum() / num_masks)
    pairs = pairwise_terms(at_points[:, 0], labels[:, 0])
    recorded.compare(line, "out.batch_sigmoid_ce", pairs.bce)
    recorded.compare(line, "out.batch_dice", pairs.dice)


def _place_of(points: Tensor, wanted: Tensor) -> Tensor:
    """For each wanted point [M, P, 2] the index of the nearest of ours."""
    return (wanted[:, :, None] - points[:, None]).abs().sum(-1).argmin(2)


def contrastive(line: Line, case: Case, recorded: Recording) -> None:
    images, words, ids = recorded["in.v"], recorded["in.t"], recorded["in.hash"]
    scale = similarity_scale(recorded["in.logit_scale"], 100.0)
    columns = first_of_equals(ids)
    is_same = ids[:, None] == ids[columns][None]
    multi = contrastive_terms(images[None], words[columns], is_same, scale, first_weight=0.7)
    recorded.compare(line, "out.ql_multi_contrastive", multi[0])
    is_self = torch.eye(len(images), dtype=torch.bool)
    single = contrastive_terms(images[None], words, is_self, scale)
    recorded.compare(line, "out.image_text_contrastive", single[0])


def postprocessing(line: Line, case: Case, recorded: Recording) -> None:
    logits, probs = recorded["in.mask_logits"], recorded["in.class_logits"].softmax(-1)
    valid_hw = tuple(recorded["in.img_hw_valid"].tolist())
    out_hw = tuple(recorded["in.out_hw"].tolist())
    # four times the size of predictions is that of the padded image
    canvas_hw = (4 * logits.shape[1], 4 * logits.shape[2])
    sizes = {"canvas_hw": canvas_hw, "mode": "bicubic_antialias"}
    whole = postprocess.resize_masks(logits, valid_hw=canvas_hw, out_hw=canvas_hw, **sizes)
    masks = postprocess.resize_masks(logits, valid_hw=valid_hw, out_hw=out_hw, **sizes)
    for key, maps in (("mid.upsampled", whole), ("mid.postprocessed", masks)):
        recorded.compare(line, key, maps[: len(recorded.tensors[key])])
    recorded.compare(line, "out.semantic", postprocess.semantic(probs, masks))
    with_background = postprocess.semantic(probs, masks, keep_background=True)
    recorded.compare(line, "out.semantic_keep_bgd", with_background)
    things = recorded.fact("things")
    is_thing = [index in things for index in range(recorded.fact("num_classes"))]
    panoptic = postprocess.panoptic(
        probs,
        masks,
        is_thing=is_thing,
        object_threshold=recorded.fact("object_mask_threshold"),
        overlap_threshold=recorded.fact("overlap_threshold"),
    )
    recorded.compare(line, "out.panoptic", panoptic.ids)
    line.require("segments", segment_facts(panoptic) == recorded.fact("segments_info"))
    found = postprocess.instances(probs, masks, top_k=recorded.fact("topk"), is_thing=is_thing)
    compare_instances(line, recorded, found, "out.inst_{}")


def metrics(line: Line, case: Case, recorded: Recording) -> None:
    """Percentages as the official evaluators print them."""
    overlap = ReferringOverlap()
    for key in recorded.numbered_keys("ref.in.pred_logits_"):
        truth = recorded[key.replace("pred_logits", "gt")].bool().numpy()
        for found, wanted in zip((recorded[key] > 0).numpy(), truth, strict=True):
            overlap.add(found, wanted)
    scores = overlap.result()
    ours = {"cIoU": scores.ciou, "mIoU": scores.miou}
    ours |= {
        f"precision@{threshold}": share
        for threshold, share in zip(THRESHOLDS, scores.precision, strict=True)
    }
    for name, value in recorded.fact("grounding").items():
        line.compare(name, 100 * ours[name], value, atol=0, rtol=1e-6)
    recalls = _recalls(recorded)
    for name, value in recorded.fact("retrieval").items():
        # printed with three digits behind the point
        line.compare(name, recalls[name], value, atol=5.1e-4)


def _recalls(recorded: Recording) -> dict[str, float]:
    normalize = torch.nn.functional.normalize
    parts = [
        normalize(recorded[f"ret.in.image_{side}"], dim=-1) for side in ("decoder", "backbone")
    ]
    words = normalize(recorded["ret.in.text"], dim=-1)
    images, captions = torch.cat(parts, 1) * 0.5, torch.cat([words, words], 1)
    per_image = len(words) // len(images)
    owners = np.repeat(np.arange(len(images)), per_image)
    found = score_retrieval(images.numpy(), captions.numpy(), owners.tolist())
    recalls = {f"ir{rank}": 100 * share for rank, share in found.text_to_image.items()}
    recalls |= {f"tr{rank}": 100 * share for rank, share in found.image_to_text.items()}
    return recalls | {"irtr": recalls["ir1"] + recalls["tr1"]}
