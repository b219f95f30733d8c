"""One recorded training step of an OpenSeeD: denoising, assignments, losses and gradients."""

from dataclasses import replace

import torch
from line import Line

from xdecoder.heads import unit
from xdecoder.losses.draws import RecordedDraws
from xdecoder.losses.mask import pad_masks
from xdecoder.losses.points import PointSampling
from xdecoder.openseed.boxes import cxcywh
from xdecoder.openseed.config import BoxLossConfig, DenoisingConfig
from xdecoder.openseed.criterion import box_losses
from xdecoder.openseed.denoising import disturbed
from xdecoder.openseed.targets import BoxedTargets

# the README of the recordings: losses a share of their size, norms of gradients ten times it
RTOL, GRADIENT_RTOL = 1e-4, 1e-3
# the recorded program calls the first 80 names of its list things; this is not in its files
_NUM_COCO_THINGS = 80
_TERMS = (
    ("label", "mask_cls"),
    ("box", "bbox"),
    ("giou", "giou"),
    ("mask", "mask_bce"),
    ("dice", "mask_dice"),
)


class Training:
    """One recorded step of a variant: `seg` with masks, `det` with boxes only."""

    def __init__(self, recording, task):
        self.recording, self.task = recording, task
        self.model = recording.model()
        self.config = BoxLossConfig(
            points=PointSampling(num_points=recording.sizes["points"]),
            denoising=DenoisingConfig(num_queries=recording.sizes["dn_num"]),
        )

    def recorded(self, key):
        return self.recording.train[f"{self.task}.{key}"]

    def known(self, key):
        return self.recording.info[f"{self.task}.{key}"]

    def lines(self):
        forward = self._line("forward")
        names = unit(self.model.encode_text(self.recorded("text.input_ids").long()).sentence)
        forward.compare("names", names, self.recorded("text.embeddings"))
        pyramid = self.model.encode_images(*self.recording.batch())
        targets = self._targets(pyramid)
        noise = RecordedDraws([self.recorded("rng.dn_box_noise#0")])
        per_image = [
            targets.per_image(each) for each in (targets.class_ids, targets.boxes_cxcywh01)
        ]
        conditions = disturbed(*per_image, noise, self.config.denoising)
        self._compare_conditions(forward, conditions, names)
        output = self.model.decode(pyramid, names, conditions=conditions)
        if self.task == "det":
            # learned queries take part, but nothing is asked of them
            rows = slice(0, output.num_foreground)
            output = replace(output, layers=tuple(each.rows(rows) for each in output.layers))
        self._compare_output(forward, output)
        yield forward
        split = self.model.decoder.num_queries if self.model.decoder.num_background else None
        split = split if self.task == "seg" else None
        losses = self._line("assignments and losses")
        total = self._compare_losses(losses, output, targets, conditions, split, "")
        yield losses
        official = next(
            (k for k in self.recording.info if k.endswith(".total") and "n_q_th" in k), ""
        )
        if official.startswith(self.task):
            name = official.split(".")[1]
            line = self._line("as the released criterion splits queries")
            boundary = int(name.rpartition("_")[2])
            self._compare_losses(line, output, targets, conditions, boundary, f"{name}.")
            yield line
        yield self._compare_gradients(total)

    def _line(self, part):
        return Line(f"{self.recording.folder.name}/train {self.task} {part}")

    def _targets(self, pyramid):
        canvas_hw = tuple(4 * size for size in pyramid.mask_features.shape[2:])
        _, sizes_hw = self.recording.batch()
        ids, boxes, masks = [], [], []
        for i, (height, width) in enumerate(sizes_hw):
            ids.append(self.recorded(f"target{i}.labels"))
            unit_px = torch.tensor([width, height, width, height])
            boxes.append(cxcywh(self.recorded(f"target{i}.boxes_xyxy_abs")) / unit_px)
            masks.append(pad_masks(self.recorded(f"target{i}.masks").bool(), canvas_hw))
        class_ids = torch.cat(ids)
        return BoxedTargets(
            counts=tuple(len(each) for each in ids),
            class_ids=class_ids,
            boxes_cxcywh01=torch.cat(boxes),
            is_thing=class_ids < _NUM_COCO_THINGS,
            masks=torch.cat(masks) if self.task == "seg" else None,
        )

    def _compare_conditions(self, line, conditions, names):
        line.require("dn groups", conditions.num_groups == self.known("dn_scalar"))
        line.require("dn size", conditions.count == self.known("dn_pad_size"))
        mask = self.recorded("dn.mask")
        may_attend = conditions.may_attend(len(mask) - conditions.count)[0, 0]
        line.require("dn visibility", may_attend.equal(~mask))
        line.require(
            "dn images",
            conditions.image_index.equal(self.recorded("dn.bid").repeat(conditions.num_groups)),
        )
        line.require("dn places", conditions.place.equal(self.recorded("dn.map")))
        line.require("dn used", len(self.recorded("dn.known")) == len(conditions.place))
        content = self.model.decoder.name_projection(names)[conditions.class_ids]
        content = content * conditions.is_used[..., None]
        line.compare("dn contents", content, self.recorded("dn.label"))
        boxes = conditions.boxes_cxcywh01
        line.compare("dn boxes", boxes, self.recorded("dn.bbox").sigmoid())

    def _compare_output(self, line, output):
        recorded = {key.removeprefix(f"{self.task}."): None for key in self.recording.train}
        for name, prediction in (
            ("out.", output.layers[-1]),
            ("out.dn.", output.denoised[-1]),
            ("out.interm.", output.selected),
        ):
            for part, ours in (
                ("pred_logits", prediction.class_logits),
                ("pred_boxes", prediction.boxes_cxcywh01),
                ("pred_masks", output.mask_logits(prediction)),
            ):
                if name + part in recorded:
                    line.compare(name + part, ours, self.recorded(name + part))

    def _draws(self):
        counts, draws = {}, []
        for consumer in self.known("rng_order"):
            if consumer != "dn_box_noise":
                index = counts.setdefault(consumer, 0)
                counts[consumer] += 1
                draws.append(self.recorded(f"rng.{consumer}#{index}"))
        return RecordedDraws(draws)

    def _compare_losses(self, line, output, targets, conditions, num_thing_queries, prefix):
        """The weighted total; `prefix` names another set of recorded losses."""
        unweighted = self.known(f"{prefix}losses_unweighted")
        weighted = self.known(f"{prefix}losses_weighted")
        weights = self.recording.info.get("weight_dict", {})
        total, compared = 0.0, set()
        found = box_losses(
            output,
            targets,
            self._draws(),
            self.config,
            conditions=conditions,
            num_thing_queries=num_thing_queries,
        )
        for name, terms, pairs, _ in found:
            base, _, is_dn = name.partition("/")
            suffix = _suffix(base) + ("_dn" if is_dn else "")
            divide = max(sum(targets.counts), 1) * (conditions.num_groups if is_dn else 1)
            for ours, theirs in _TERMS:
                value = getattr(terms, ours)
                if value is None:
                    continue
                key = f"loss_{theirs}_{suffix}"
                compared.add(key)
                line.compare(key, value / divide, unweighted[key], rtol=RTOL)
                weight = weights.get(key, getattr(self.config, ours))
                line.compare(f"weighted {key}", weight * value / divide, weighted[key], rtol=RTOL)
                total = total + weight * value / divide
            if not is_dn:
                self._compare_pairs(line, f"{prefix}match.{_recorded_name(base)}", pairs, targets)
        line.require("no other losses", compared == set(unweighted))
        line.compare("total", total, self.known(f"{prefix}total"), rtol=RTOL)
        return total

    def _compare_pairs(self, line, name, pairs, targets):
        first = 0
        for i, count in enumerate(targets.counts):
            rows = pairs.image_index == i
            ours = torch.stack([pairs.query_index[rows], pairs.target[rows] - first])
            line.require(f"{name}.{i}", ours.equal(self.recorded(f"{name}.{i}")))
            first += count

    def _compare_gradients(self, total):
        line = self._line("gradients")
        total.backward()
        parameters = dict(self.model.named_parameters())
        ours_of = self.recording.ours_of
        for theirs, norm in self.known("grad_norms").items():
            gradient = parameters[ours_of[theirs]].grad
            actual = 0.0 if gradient is None else gradient.norm()
            line.compare(f"norm {theirs}", actual, norm, rtol=GRADIENT_RTOL)
        for key in [k for k in self.recording.train if k.startswith(f"{self.task}.grad.")]:
            expected = self.recording.train[key]
            theirs = key.removeprefix(f"{self.task}.grad.")
            gradient = parameters[ours_of.get(theirs, _BOX_COPY.get(theirs, theirs))].grad
            if gradient.shape != expected.shape:
                gradient = gradient.reshape(expected.shape)
            if ours_of.get(theirs) in _TRANSPOSED:
                gradient = parameters[ours_of[theirs]].grad.t()
            scale = expected.square().mean().sqrt().item()
            line.compare(theirs, gradient, expected, atol=GRADIENT_RTOL * max(scale, 1e-8))
        return line


# gradients that are recorded under the name of a copy
_BOX_COPY = {
    f"sem_seg_head.predictor._bbox_embed.{layer}": f"decoder.heads.box_mlp.{layer}"
    for i in range(3)
    for part in ("weight", "bias")
    for layer in [f"layers.{i}.{part}"]
}
_TRANSPOSED = (
    "decoder.name_projection.weight",
    "decoder.heads.class_projection.weight",
    "text_encoder.projection.weight",
)


def _suffix(name):
    if name == "selected":
        return "0_interm"
    return "0" if name == "final" else str(int(name.removeprefix("aux")) + 1)


def _recorded_name(name):
    return "interm" if name == "selected" else name
