"""OpenSeeD: text, pyramid, proposals, decoder, post-processing, losses and gradients."""

from collections.abc import Iterator
from pathlib import Path

import torch
from line import Line
from openseed_recording import Recording
from openseed_training import Training

from xdecoder.heads import unit
from xdecoder.openseed import postprocess
from xdecoder.openseed.boxes import logit
from xdecoder.openseed.proposals import most_nameable, proposals


def check(folder: Path) -> Iterator[Line]:
    """Several lines per recorded variant below a folder."""
    for path in sorted(folder.glob("*/info.json")):
        yield from _check_variant(Recording(path.parent))


def _check_variant(recording: Recording) -> Iterator[Line]:
    name = recording.folder.name
    model = recording.model()
    with torch.no_grad():
        for part in (_text, _operators, _pyramid, _decoder, _post):
            line = Line(f"{name}/eval {part.__name__[1:]}")
            part(line, recording, model)
            yield line
    for task in ("seg", "det"):
        yield from Training(recording, task).lines()
    unread = Line(f"{name}: every recorded tensor is used")
    for file in (recording.eval, recording.train):
        for key in sorted(set(file) - file.used):
            unread.require(key, False)
    unread.require("files", True)
    yield unread


def _text(line, recording, model):
    recorded = recording.eval
    ids = recorded["eval.input_ids"].long()
    vectors = unit(model.encode_text(ids.flatten(0, 1)).sentence).unflatten(0, ids.shape[:2])
    first = recorded["eval.class0_template0to2.projected_normalised"]
    line.compare("first prompts", vectors[0, : len(first)], first)
    states = []
    hook = model.text_encoder.norm.register_forward_hook(lambda *call: states.append(call[2]))
    model.encode_text(ids[0, : len(first)])
    hook.remove()
    hidden = recorded["eval.class0_template0to2.last_hidden_state"]
    line.compare("hidden", states[0], hidden)
    mean = vectors.mean(1)
    mean = mean / mean.norm(dim=-1, keepdim=True)
    line.compare("names", mean, recorded["eval.text_embeddings"])


def _operators(line, recording, model):
    """Both deformable attentions on the recorded inputs."""
    recorded = recording.eval
    for name, attention in (
        ("msda_enc0", model.pixel_decoder.encoder[0].attention),
        ("msda_dec0", model.decoder.layers[0].cross_attention),
    ):
        sizes_hw = [tuple(size) for size in recorded[f"{name}.spatial_shapes"].tolist()]
        starts = torch.tensor([0, *(h * w for h, w in sizes_hw[:-1])]).cumsum(0)
        line.require(f"{name} starts", starts.equal(recorded[f"{name}.level_start_index"]))
        out = attention(
            recorded[f"{name}.query"],
            recorded[f"{name}.value_in"],
            sizes_hw,
            recorded[f"{name}.reference_points"],
        )
        line.compare(name, out, recorded[f"{name}.out"])


def _pyramid(line, recording, model):
    recorded, outputs = recording.eval, {}
    pixels = model.pixel_decoder
    hooked = [
        *((f"input_proj.{i}", each) for i, each in enumerate(pixels.input_projections)),
        *((f"encoder.layer{i}", each) for i, each in enumerate(pixels.encoder)),
    ]
    hooks = [_keep(module, outputs, name) for name, module in hooked]
    images = []
    hooks.append(model.backbone.register_forward_pre_hook(lambda _, x: images.append(x[0])))
    hooks.append(_keep(model.backbone, outputs, "backbone"))
    pyramid = model.encode_images(*recording.batch())
    for hook in hooks:
        hook.remove()
    line.compare("pixels", images[0], recorded["normalised_padded"])
    for stage, map_ in zip((2, 3, 4, 5), outputs["backbone"], strict=True):
        line.compare(f"res{stage}", map_, recorded[f"backbone.res{stage}"])
    for name, _ in hooked:
        line.compare(name, outputs[name], recorded[f"pixel_decoder.{name}.out"])
    for i, level in enumerate(reversed(pyramid.levels)):
        line.compare(f"level {i}", level, recorded[f"pixel_decoder.multi_scale.{i}"])
    expected = recorded["pixel_decoder.mask_features"]
    line.compare("mask features", pyramid.mask_features, expected)


def _decoder(line, recording, model):
    recorded, seen = recording.eval, {}
    decoder = model.decoder
    pyramid = model.encode_images(*recording.batch())
    hooks = [_keep(each, seen, f"layer{i}") for i, each in enumerate(decoder.layers)]
    for i, layer in enumerate(decoder.layers):
        hooks.append(_keep_inputs(layer, seen, f"in{i}"))
    hooks.append(_keep(decoder.proposal_norm, seen, "proposed"))
    output = model.decode(pyramid, recorded["eval.text_embeddings"])
    for hook in hooks:
        hook.remove()
    _compare_proposals(line, recorded, model, pyramid, seen["proposed"])
    _compare_layers(line, recorded, decoder, seen)
    for i, prediction in enumerate(output.layers):
        prefix = "out." if i == len(output.layers) - 1 else f"out.aux{i}."
        _compare_prediction(line, prefix, prediction, recorded)
    _compare_prediction(line, "out.interm.", output.selected, recorded)
    masks = output.mask_logits(output.layers[-1])
    line.compare("masks", masks, recorded["out.pred_masks"])
    first = recorded["out.interm.pred_masks_first4"]
    line.compare("selected masks", output.mask_logits(output.selected)[:, : first.shape[1]], first)


def _compare_proposals(line, recorded, model, pyramid, states):
    decoder = model.decoder
    sizes_hw = [(each.shape[2], each.shape[3]) for each in pyramid.levels]
    boxes, is_valid = proposals(sizes_hw, sizes=decoder.proposal_sizes, like=states)
    expected = recorded["decoder.proposals.logit_boxes"]
    boxes = boxes.expand_as(expected)
    line.require("valid proposals", boxes.isfinite().equal(expected.isfinite()))
    line.compare("proposals", *(each.nan_to_num(posinf=0.0) for each in (boxes, expected)))
    line.compare("proposal states", states, recorded["decoder.enc_output_norm.out"])
    projected = unit(decoder.heads.class_projection(states))
    logits = model.logit_scale.exp() * projected @ recorded["eval.text_embeddings"].t()
    line.compare("proposal names", logits, recorded["decoder.enc_class_unselected"])
    index = recorded["decoder.topk_index"]
    line.require("chosen", most_nameable(logits, is_valid, index.shape[1]).equal(index))


def _compare_layers(line, recorded, decoder, seen):
    """Theirs are [Q, B, C], and count boxes from the ones before the first layer."""
    contents, _, boxes = seen["in0"][:3]
    line.compare("contents", contents, recorded["decoder.in.tgt"].transpose(0, 1))
    wanted = recorded["decoder.in.refpoints_unsigmoid"].transpose(0, 1).sigmoid()
    line.compare("first boxes", boxes, wanted)
    line.require("no padding", bool((recorded["decoder.in.valid_ratios"] == 1).all()))
    for i in range(len(decoder.layers)):
        _, positions, boxes = seen[f"in{i}"][:3]
        expected = recorded[f"decoder.query_pos#{i}"].transpose(0, 1)
        line.compare(f"positions {i}", positions, expected)
        line.compare(f"boxes {i}", boxes, recorded[f"decoder.reference.{i}"])
        states = seen[f"layer{i}"]
        line.compare(f"layer {i}", states, recorded[f"decoder.layer{i}.out"].transpose(0, 1))
        line.compare(f"normed {i}", decoder.heads.norm(states), recorded[f"decoder.hs.{i}"])
    refined = (decoder.heads.box_mlp(states) + logit(boxes)).sigmoid()
    last = f"decoder.reference.{len(decoder.layers)}"
    line.compare("last boxes", refined, recorded[last])


def _compare_prediction(line, prefix, prediction, recorded):
    line.compare(f"{prefix}names", prediction.class_logits, recorded[f"{prefix}pred_logits"])
    line.compare(f"{prefix}boxes", prediction.boxes_cxcywh01, recorded[f"{prefix}pred_boxes"])


def _post(line, recording, model):
    recorded, info, sizes = recording.eval, recording.info, recording.sizes
    images, sizes_hw = recording.batch()
    pyramid = model.encode_images(images, sizes_hw)
    output = model.decode(pyramid, recorded["eval.text_embeddings"])
    is_thing = [i < info["n_thing"] for i in range(len(info["eval_class_names"]))]
    for i, image_hw in enumerate(sizes_hw):
        out_hw = tuple(info["out_sizes"][i] or image_hw)
        found = postprocess.image_prediction(output, i, image_hw=image_hw, out_hw=out_hw)
        line.compare(f"{i} semantic", postprocess.semantic(found), recorded[f"post.{i}.sem_seg"])
        panoptic = postprocess.panoptic(
            found,
            is_thing=is_thing,
            object_threshold=sizes["obj_thr"],
            overlap_threshold=sizes["ovl_thr"],
        )
        line.require(f"{i} panoptic", panoptic.ids.equal(recorded[f"post.{i}.panoptic_seg"]))
        segments = [
            {"id": each.id, "isthing": each.is_thing, "category_id": each.class_id}
            for each in panoptic.segments
        ]
        line.require(f"{i} segments", segments == info["post"][f"{i}.segments_info"])
        instances = postprocess.instances(found, top_k=sizes["topk_inst"], is_thing=is_thing)
        # theirs keep the order from before scores counted masks
        order = recorded[f"post.{i}.inst.scores"].argsort(descending=True, stable=True)
        for ours, theirs, is_exact in (
            (instances.scores, "scores", False),
            (instances.boxes_xyxy_px, "boxes", False),
            (instances.class_ids, "classes", True),
            (instances.masks.byte(), "masks", True),
        ):
            expected = recorded[f"post.{i}.inst.{theirs}"][order]
            if is_exact:
                line.require(f"{i} instance {theirs}", ours.equal(expected))
            else:
                line.compare(f"{i} instance {theirs}", ours, expected)


def _keep(module, kept, name):
    return module.register_forward_hook(lambda *call: kept.__setitem__(name, call[2]))


def _keep_inputs(module, kept, name):
    return module.register_forward_pre_hook(lambda _, inputs: kept.__setitem__(name, inputs))
