"""Editing through a random inpainting pipeline of a few thousand parameters, made here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import BackendUnavailable, CheckpointError
from pipelines.inpainting import load_inpainting
from pipelines.predict import main


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline whose parts are all random."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra `edit`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `edit`")
    folder = tmp_path_factory.mktemp("inpainting")
    torch.manual_seed(0)
    whole = diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            # four levels: latents are an eighth of the picture, as in published pipelines
            block_out_channels=[4, 4, 4, 8],
            norm_num_groups=2,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=200,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=1,
            )
        ),
        tokenizer=_tokenizer(folder),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=16,
            in_channels=9,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    whole.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def _tokenizer(folder: Path) -> object:
    """CLIP's tokenizer with letters for words."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def test_the_same_seed_paints_the_same_inside_the_mask_only(pipeline: Path) -> None:
    image, mask = Image.new("RGB", (128, 64), "red"), Image.new("1", (128, 64))
    mask.paste(1, (0, 0, 64, 64))
    first, again, other = (
        np.asarray(load_inpainting(pipeline, num_steps=2, seed=seed)(image, mask, "a cat"))
        for seed in (0, 0, 1)
    )
    assert first.shape == (64, 128, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_editing_writes_the_picture_and_what_it_did(
    tiny_run: Path, pipeline: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    words = ["--task", "editing", "--text", "a cup", "--prompt", "a cat"]
    words += ["--inpainting", str(pipeline), "--steps", "2", "--image", str(tmp_path / "photo.png")]
    assert main(["--checkpoint", str(tiny_run), "--out", str(out), *words]) == 0
    facts = json.loads((out / "photo_editing.json").read_text())["edits"][0]
    edited = np.asarray(Image.open(out / "photo_editing.png"))
    is_changed = (edited != pixels).any(2)
    assert edited.shape == pixels.shape
    assert is_changed.sum() <= facts["area_px"]
    assert is_changed.any() == (facts["area_px"] > 0)
    left, top, right, bottom = facts["box_xyxy_px"]
    assert is_changed[top:bottom, left:right].sum() == is_changed.sum()
    assert (out / "photo_editing_panels.png").is_file()


def test_a_folder_without_a_pipeline_is_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"with model_index\.json; it is not\. Save one"):
        load_inpainting(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BackendUnavailable, match=r"pip install generalized-decoder\[edit\]"):
        load_inpainting(tmp_path)
