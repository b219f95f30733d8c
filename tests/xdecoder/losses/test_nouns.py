import torch

from xdecoder.losses.matching import Matching
from xdecoder.losses.nouns import NamedVectors, match_free_queries, noun_terms
from xdecoder.losses.world import World

SCALE = torch.tensor(20.0)
# three images with 2, 0 and 1 nouns; two images with a segment
COUNTS = (2, 0, 1)
DIM = 5


def embeddings():
    """Queries [2, 3, 4, 5] that point in different directions, in two layers."""
    return torch.randn(2, 3, 4, DIM)


def matching():
    return Matching(
        image_index=torch.tensor([0, 2]),
        query_index=torch.tensor([[3, 1], [0, 1]]),
        is_matched=torch.ones(2, 2, dtype=torch.bool),
    )


def named(count, ids):
    return NamedVectors(vectors=torch.randn(count, DIM), ids=torch.tensor(ids))


def terms(rows, nouns, *, classes=None, cuts_noun_gradient=False):
    return noun_terms(
        rows,
        matching(),
        classes or named(2, [7, 8]),
        nouns,
        COUNTS,
        scale=SCALE,
        label_cost=2.0,
        region_share=0.7,
        cuts_noun_gradient=cuts_noun_gradient,
        world=World(),
    )


def test_a_text_goes_to_the_free_query_that_points_to_it():
    texts = torch.eye(3, DIM)
    rows = torch.zeros(3, 4, DIM)
    # the first image's query 0 points to its second text but is taken, query 2 nearly does
    rows[..., 4] = 1
    rows[0, 0] = texts[1]
    rows[0, 2] = texts[1] + 0.1
    rows[0, 3] = texts[0]
    rows[2, 1] = texts[2]
    is_taken = torch.zeros(3, 4, dtype=torch.bool)
    is_taken[0, 0] = True
    found = match_free_queries(rows, is_taken, texts, COUNTS, SCALE, 2.0)
    assert found.image_index.tolist() == [0, 0, 2]
    assert found.query_index.tolist() == [2, 3, 1]
    assert found.text_index.tolist() == [1, 0, 2]


def test_texts_beyond_the_free_queries_get_none():
    is_taken = torch.ones(3, 4, dtype=torch.bool)
    is_taken[0, 1] = False
    found = match_free_queries(embeddings()[0], is_taken, torch.randn(3, DIM), COUNTS, SCALE, 2.0)
    assert found.query_index.tolist() == [1]
    assert found.image_index.tolist() == [0]


def test_queries_that_say_their_texts_cost_little():
    rows, nouns, classes = embeddings(), named(3, [1, 2, 3]), named(2, [7, 8])
    before = terms(rows, nouns, classes=classes)
    rows[:, 0, 1:3] = nouns.vectors[:2]
    rows[:, 2, 2] = nouns.vectors[2]
    rows[0, 0, 3], rows[1, 0, 0] = classes.vectors[0], classes.vectors[0]
    rows[:, 2, 1] = classes.vectors[1]
    after = terms(rows, nouns, classes=classes)
    assert (after < 0.2 * before).all()


def test_equal_nouns_of_two_images_are_one_answer():
    rows, vectors = embeddings(), torch.eye(DIM)
    classes = NamedVectors(vectors=vectors[2:4], ids=torch.tensor([7, 8]))
    # the first and the third text are one word, and each has a query that says it
    texts = vectors[torch.tensor([0, 1, 0])]
    rows[0, 0, 1:4], rows[0, 2, 2], rows[0, 2, 0] = vectors[:3], vectors[0], vectors[3]
    same = NamedVectors(vectors=texts, ids=torch.tensor([1, 2, 1]))
    apart = NamedVectors(vectors=texts, ids=torch.tensor([1, 2, 3]))
    merged, split = terms(rows, same, classes=classes), terms(rows, apart, classes=classes)
    # nothing says anything in the other layer
    assert merged[0] < split[0] - 0.1


def test_the_gradient_of_noun_queries_is_cut_only_where_asked():
    nouns = named(3, [1, 2, 3])
    rows = embeddings()
    found = {}
    for is_cut in (False, True):
        leaf = rows.clone().requires_grad_()
        terms(leaf, nouns, cuts_noun_gradient=is_cut).sum().backward()
        found[is_cut] = leaf.grad.flatten(0, 2).any(1).sum().item()
    # in each of two layers three queries have nouns and two have classes
    assert found == {False: 10, True: 4}


def test_a_batch_without_segments_and_nouns_is_zero_with_a_gradient():
    leaf = embeddings().requires_grad_()
    nothing = NamedVectors(vectors=torch.zeros(0, DIM), ids=torch.zeros(0, dtype=torch.long))
    empty = Matching(
        image_index=torch.zeros(0, dtype=torch.long),
        query_index=torch.zeros(2, 0, dtype=torch.long),
        is_matched=torch.zeros(2, 0, dtype=torch.bool),
    )
    values = noun_terms(
        leaf,
        empty,
        nothing,
        nothing,
        (0, 0, 0),
        scale=SCALE,
        label_cost=2.0,
        region_share=0.7,
        cuts_noun_gradient=False,
        world=World(),
    )
    assert values.tolist() == [0.0, 0.0]
    values.sum().backward()
    assert torch.isfinite(leaf.grad).all()
