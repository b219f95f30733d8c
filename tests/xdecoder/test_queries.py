import pytest
import torch

from xdecoder.queries import QueryLayout, QuerySet, RowGroup, TextQueries

LAYOUT = QueryLayout(num_latents=3, num_grounding=4, num_phrase_tokens=5, num_caption=2)

ALL, NOTHING, CAUSAL = "all", "nothing", "causal"
CELLS = {
    ("latent", "latent"): ALL,
    ("latent", "global"): NOTHING,
    ("latent", "grounding"): NOTHING,
    ("latent", "caption"): NOTHING,
    ("latent", "phrase"): NOTHING,
    ("global", "latent"): NOTHING,
    ("global", "global"): ALL,
    ("global", "grounding"): NOTHING,
    ("global", "caption"): NOTHING,
    ("global", "phrase"): NOTHING,
    ("grounding", "latent"): NOTHING,
    ("grounding", "global"): NOTHING,
    ("grounding", "grounding"): ALL,
    ("grounding", "caption"): NOTHING,
    ("grounding", "phrase"): ALL,
    ("caption", "latent"): ALL,
    ("caption", "global"): ALL,
    ("caption", "grounding"): NOTHING,
    ("caption", "caption"): CAUSAL,
    ("caption", "phrase"): NOTHING,
    ("phrase", "latent"): NOTHING,
    ("phrase", "global"): NOTHING,
    ("phrase", "grounding"): ALL,
    ("phrase", "caption"): NOTHING,
    ("phrase", "phrase"): ALL,
}


@pytest.mark.parametrize(("looks", "seen"), CELLS)
def test_cell_of_the_visibility_table(looks, seen):
    block = LAYOUT.may_attend()[LAYOUT.rows(RowGroup(looks)), LAYOUT.rows(RowGroup(seen))]
    expected = {
        ALL: torch.ones_like(block),
        NOTHING: torch.zeros_like(block),
        CAUSAL: torch.ones_like(block).tril(),
    }
    assert block.numel() > 0
    assert torch.equal(block, expected[CELLS[looks, seen]])


def test_groups_tile_the_rows_in_order():
    order = ["LATENT", "GLOBAL", "GROUNDING", "CAPTION", "PHRASE"]
    rows = [range(LAYOUT.num_rows)[LAYOUT.rows(RowGroup[name])] for name in order]
    assert [row for group in rows for row in group] == list(range(3 + 1 + 4 + 2 + 5))
    assert LAYOUT.objects == slice(0, 4)
    assert LAYOUT.pixel_rows == slice(0, 8)
    assert LAYOUT.cross_rows == slice(0, 10)


def test_groups_that_are_not_there_are_empty_slices():
    layout = QueryLayout(num_latents=3)
    table = torch.zeros(layout.num_rows)
    assert layout.num_rows == 4
    assert [table[layout.rows(group)].numel() for group in RowGroup] == [3, 1, 0, 0, 0]


def test_grounding_rows_are_as_many_as_latents():
    phrases = TextQueries(tokens=torch.zeros(2, 5, 8), is_padding=torch.zeros(2, 5).bool())
    caption = TextQueries(tokens=torch.zeros(2, 7, 8), is_padding=torch.zeros(2, 7).bool())
    layout = QuerySet(grounding=phrases, caption=caption).layout(3)
    assert layout == QueryLayout(num_latents=3, num_grounding=3, num_phrase_tokens=5, num_caption=7)


def test_layout_without_latents_is_refused():
    with pytest.raises(ValueError, match=r"num_latents must be at least 1.*got num_latents=0"):
        QueryLayout(num_latents=0)


def test_text_queries_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"is_padding \[B, T\]; got \[2, 5, 8\] and \[2, 4\]"):
        TextQueries(tokens=torch.zeros(2, 5, 8), is_padding=torch.zeros(2, 4).bool())
