import pytest
import torch

from xdecoder.batch import PhraseTargets
from xdecoder.losses.draws import Draws
from xdecoder.tasks.texts import draw_class_prompts, draw_phrases, encode_distinct


def phrases_of(count):
    masks = torch.arange(count)[:, None, None].expand(count, 4, 6) == torch.arange(24).view(4, 6)
    return PhraseTargets(phrases=tuple(f"phrase {i}" for i in range(count)), masks=masks)


def test_background_comes_last_and_templates_are_drawn_per_class():
    names = [f"name{i}" for i in range(20)]
    prompts = draw_class_prompts(names, ("{}.", "a photo of a {}."), Draws(0))
    assert len(prompts) == 21
    assert "background" in prompts[-1]
    assert {p.startswith("a photo") for p in prompts} == {True, False}
    assert all(name in prompt for name, prompt in zip(names, prompts, strict=False))


def test_drawn_phrases_keep_their_masks():
    drawn = [draw_phrases([phrases_of(6)], 4, Draws(seed))[0] for seed in range(20)]
    assert {len(d.phrases) for d in drawn} == {1, 2, 3, 4}
    for targets in drawn:
        assert len(set(targets.phrases)) == len(targets.phrases) == len(targets.masks)
        for phrase, mask in zip(targets.phrases, targets.masks, strict=True):
            assert int(mask.flatten().nonzero()) == int(phrase.split()[1])


def test_an_image_without_phrases_stays_without():
    drawn = draw_phrases([phrases_of(0), phrases_of(1)], 4, Draws(0))
    assert [len(d.phrases) for d in drawn] == [0, 1]


def test_each_distinct_text_enters_an_image_once(small_model):
    texts = encode_distinct(small_model, ["a red ball", "a box", "a red ball"])
    assert len(texts.features.tokens) == 2
    queries = texts.grounding([["a box"], ["a red ball", "a box", "a red ball"], []])
    lengths = [
        len(ids[: int(ids.argmax()) + 1]) for ids in small_model.tokenizer(["a red ball", "a box"])
    ]
    assert (~queries.is_padding).sum(1).tolist() == [lengths[1], sum(lengths), 0]
    torch.testing.assert_close(
        queries.tokens[1, : lengths[0]], texts.features.tokens[0, : lengths[0]]
    )
    torch.testing.assert_close(queries.tokens[0, : lengths[1]], queries.tokens[1, lengths[0] :])


def test_no_phrases_at_all_leave_one_hidden_column(small_model):
    queries = encode_distinct(small_model, ["a box"]).grounding([[], []])
    assert queries.is_padding.tolist() == [[True], [True]]


def test_sentences_come_in_the_asked_order(small_model):
    texts = encode_distinct(small_model, ["a red ball", "a box"])
    picked = texts.sentences(["a box", "a red ball", "a box"])
    torch.testing.assert_close(picked, texts.features.sentence[[1, 0, 1]])
    assert texts.sentences([]).shape == (0, 32)
    with pytest.raises(KeyError):
        texts.sentences(["unknown"])
