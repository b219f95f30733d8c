import math
import os
import subprocess
import sys

import pytest
import torch

from xdecoder.losses.contrastive import (
    alignment_terms,
    contrastive_terms,
    first_of_equals,
    similarity_scale,
    stable_hash,
    text_ids,
)


def test_equal_words_have_one_number_in_every_process():
    code = "from xdecoder.losses.contrastive import stable_hash as h; print(h('a  Red cat'))"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(printed.stdout) == stable_hash("a red cat ") >= 0
    assert stable_hash("a red cat") != stable_hash("a red hat")


def test_ids_fit_into_64_bits():
    assert text_ids(["a", "b", "a"])[0] == text_ids(["a"])[0]


def test_repeated_ids_are_left_out():
    assert first_of_equals(torch.tensor([5, 9, 5, 2, 9])).tolist() == [0, 1, 3]
    assert first_of_equals(torch.zeros(0, dtype=torch.long)).tolist() == []


def test_the_scale_is_limited_above():
    assert similarity_scale(torch.tensor([10.0]), 100.0).item() == 100.0
    assert similarity_scale(torch.tensor([1.0]), 100.0).item() == pytest.approx(math.e)


def test_contrast_has_its_closed_form():
    rows = torch.eye(3)[None]
    is_own = torch.eye(3, dtype=torch.bool)
    # one cosine of 1 against two of 0
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    value = contrastive_terms(rows, torch.eye(3), is_own, torch.tensor(2.0))
    assert value.item() == pytest.approx(expected)


def test_rows_that_share_a_text_are_no_negatives_of_each_other():
    images = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]])
    texts = images[0, [0, 2]]
    is_positive = torch.tensor([[True, False], [True, False], [False, True]])
    value = contrastive_terms(images, texts, is_positive, torch.tensor(50.0), first_weight=1.0)
    assert value.item() == pytest.approx(0, abs=1e-6)
    wrong = contrastive_terms(images, texts, is_positive[[0, 2, 2]], torch.tensor(50.0))
    assert wrong.item() > 1


def test_no_rows_cost_nothing_and_keep_their_gradient_path():
    rows = torch.randn(2, 0, 4, requires_grad=True)
    texts = torch.randn(0, 4, requires_grad=True)
    value = contrastive_terms(rows, texts, torch.zeros(0, 0, dtype=torch.bool), torch.tensor(3.0))
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert rows.grad is not None
    assert texts.grad is not None


def test_an_image_is_aligned_with_its_own_tokens_and_padding_does_not_count():
    tokens = torch.eye(6)[None].repeat(2, 1, 1)[:, :3]
    tokens[1] = torch.eye(6)[3:]
    is_padding = torch.tensor([[False, False, True], [False, False, False]])
    latents = torch.stack([torch.eye(6)[1:2], torch.eye(6)[5:6]])[None]
    scale = torch.tensor(20.0)
    right = alignment_terms(latents, tokens, is_padding, scale)
    swapped = alignment_terms(latents.flip(1), tokens, is_padding, scale)
    assert right.item() < swapped.item()
    changed = tokens.clone()
    changed[0, 2] = 100.0
    assert alignment_terms(latents, changed, is_padding, scale).item() == right.item()
