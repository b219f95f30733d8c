"""The whole model against recordings of the official code; tolerance as for the parts."""

import copy
import json

import pytest
import torch

from xdecoder.backbones.focal import FocalNet
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import FOCAL, model_rules
from xdecoder.decoder import MaskedDecoder
from xdecoder.heads import clamped_similarity, class_logits
from xdecoder.model import XDecoder
from xdecoder.pixel_decoder import FpnTransformer
from xdecoder.queries import QuerySet, TextQueries
from xdecoder.text import prompts
from xdecoder.text.encoder import TextEncoder
from xdecoder.text.tokenizer import Tokenizer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(golden, official) -> XDecoder:
    """The recorded model with its weights, built from the official settings."""
    dim, text = official["DIM_PROJ"], official["TEXT"]
    decoder, encoder = official["DECODER"], official["ENCODER"]
    focal = official["BACKBONE"]["FOCAL"]
    trunk = FocalNet(
        focal["EMBED_DIM"],
        depths=focal["DEPTHS"],
        num_levels=focal["FOCAL_LEVELS"][0],
        window=focal["FOCAL_WINDOWS"][0],
        block={"focal_dw": "conv", "focal": "plain"}[official["BACKBONE"]["NAME"]],
    )
    state = convert(golden("weights").tensors, model_rules(FOCAL)).state
    vocabulary_size = state["text_encoder.token_embedding.weight"].shape[0]
    model = XDecoder(
        backbone=trunk,
        pixel_decoder=FpnTransformer(
            trunk.out_dims,
            dim=encoder["CONVS_DIM"],
            mask_dim=encoder["MASK_DIM"],
            num_layers=encoder["TRANSFORMER_ENC_LAYERS"],
            num_heads=decoder["NHEADS"],
            ffn_dim=decoder["DIM_FEEDFORWARD"],
        ),
        decoder=MaskedDecoder(
            dim,
            num_layers=decoder["DEC_LAYERS"] - 1,
            num_heads=decoder["NHEADS"],
            ffn_dim=decoder["DIM_FEEDFORWARD"],
            num_latents=decoder["NUM_OBJECT_QUERIES"] - 1,
            context_length=text["CONTEXT_LENGTH"],
            mask_resize="bicubic_antialias",
            unmask_first_grounding_row=True,
        ),
        text_encoder=TextEncoder(
            text["WIDTH"],
            num_layers=text["LAYERS"],
            num_heads=text["HEADS"],
            context_length=text["CONTEXT_LENGTH"],
            vocabulary_size=vocabulary_size,
        ),
        tokenizer=Tokenizer(
            context_length=text["CONTEXT_LENGTH"], num_merges=vocabulary_size - 514
        ),
        dim=dim,
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        size_divisibility=32,
        initial_logit_scale=0.0,
    )
    model.load_state_dict(state)
    return model.eval()


def _joined(recorded):
    """Both images in one batch, and their sizes; what is in the padding must not matter."""
    images = [recorded.tensors[f"in.image_{i}"] for i in range(2)]
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = torch.full((2, 3, height, width), 77.0)
    for i, image in enumerate(images):
        batch[i, :, : image.shape[1], : image.shape[2]] = image
    return batch, [(image.shape[1], image.shape[2]) for image in images]


# in float64 what is left is the rounding of the recording to float32
@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float64, 1e-6)]
)
def test_segmentation_of_images_of_two_sizes_is_the_official_one(
    golden, deviation, model, dtype, tolerance
):
    model = copy.deepcopy(model).to(dtype)
    recorded = golden("full_eval_seg")
    batch, sizes_hw = _joined(recorded)
    names = json.loads(recorded.facts["vocab"])
    classes = prompts.class_embeddings(model, names, templates=prompts.TEMPLATES)
    assert deviation(classes, recorded.tensors["in.vocab_emb"]) < tolerance
    output = model.decode(model.encode_images(batch, sizes_hw), QuerySet())
    last = len(output.layers) - 1
    for i, layer in enumerate(output.layers):
        prefix = "out." if i == last else f"out.aux{i}."
        logits = class_logits(layer.embeddings, classes, model.logit_scale)
        assert deviation(layer.embeddings, recorded.tensors[prefix + "pred_captions"]) < tolerance
        assert deviation(logits, recorded.tensors[prefix + "pred_logits"]) < tolerance
    mask_logits = output.mask_logits(last, output.layout.objects)
    assert deviation(mask_logits, recorded.tensors["out.pred_masks"]) < tolerance


@torch.no_grad()
def test_referring_is_the_official_one(golden, deviation, model):
    recorded = golden("full_eval_referring").tensors
    text = model.encode_text(recorded["in.token_ids"])
    assert deviation(text.tokens, recorded["mid.grounding_token_emb"]) < TOLERANCE
    assert deviation(text.sentence, recorded["mid.class_emb"]) < TOLERANCE
    tokens = text.tokens[~text.is_padding][None]
    is_padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    queries = QuerySet(grounding=TextQueries(tokens=tokens, is_padding=is_padding))
    output = model(recorded["in.image"][None].float(), queries)
    layout, last = output.layout, len(output.layers) - 1
    embeddings = output.layers[last].embeddings
    assert deviation(embeddings, recorded["mid.pred_captions"]) < TOLERANCE
    mask_logits = output.mask_logits(last, layout.pixel_rows)
    assert deviation(mask_logits, recorded["mid.pred_masks"]) < TOLERANCE
    similarity = clamped_similarity(
        embeddings[0, layout.grounding], text.sentence, model.logit_scale
    )
    assert deviation(similarity, recorded["mid.similarity"]) < TOLERANCE
    assert torch.equal(similarity.argmax(0), recorded["mid.matched_query"])


@torch.no_grad()
def test_greedy_captioning_is_the_official_one(golden, deviation, model):
    recorded = golden("full_eval_captioning")
    num_steps = int(recorded.facts["steps"])
    features = model.encode_images(*_joined(recorded))
    ids = recorded.tensors["in.start_token"][:, :1].expand(2, 1)
    for step in range(num_steps):
        text = model.encode_text(ids)
        caption = TextQueries(tokens=text.tokens, is_padding=torch.zeros_like(ids).bool())
        output = model.decode(features, QuerySet(caption=caption))
        states = output.layers[-1].caption_states[:, -1]
        step_prefix = f"mid.step{step:02}."
        expected = recorded.tensors[step_prefix + "caption_state"]
        assert deviation(states, expected) < TOLERANCE
        logits, best = (states @ model.token_table.t()).topk(5)
        assert torch.equal(best, recorded.tensors[step_prefix + "top5_ids"])
        assert deviation(logits, recorded.tensors[step_prefix + "top5_logits"]) < TOLERANCE
        ids = torch.cat([ids, best[:, :1]], dim=1)
    assert torch.equal(ids[:, 1:], recorded.tensors["out.tokens"][:, 1 : num_steps + 1])


@torch.no_grad()
def test_retrieval_and_classification_are_the_official_ones(golden, deviation, model):
    recorded = golden("full_eval_retrieval").tensors
    for i in range(2):
        features = model.encode_images(recorded[f"in.image_{i}"][None].float())
        output = model.decode(features, QuerySet())
        whole = output.layers[-1].embeddings[:, output.layout.global_query][:, 0]
        text = model.encode_text(recorded[f"in.token_ids_{i}"])
        logits = class_logits(whole, recorded["in.vocab_emb"], model.logit_scale)
        pairs = {
            f"out.image_embed_decoder_{i}": whole,
            f"out.image_embed_backbone_{i}": features.pooled,
            f"out.text_embeds_{i}": text.sentence,
            f"out.pred_class_{i}": logits[0],
        }
        for key, actual in pairs.items():
            assert deviation(actual, recorded[key]) < TOLERANCE, key
