import numpy as np
import pytest

from pipelines.evaluation.retrieval import score_retrieval, score_similarity


def units(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(images: np.ndarray, texts: np.ndarray, owners: list[int], rank: int) -> tuple:
    similarity = images @ texts.T
    from_images = [
        any(owners[text] == image for text in np.argsort(-similarity[image])[:rank])
        for image in range(len(images))
    ]
    from_texts = [
        owners[text] in np.argsort(-similarity[:, text])[:rank] for text in range(len(texts))
    ]
    return np.mean(from_images), np.mean(from_texts)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_recall_equals_sorting_with_several_captions_an_image(chunk: int) -> None:
    images, owners = units(20, 0), [row % 20 for row in range(53)]
    texts = images[owners] + 1.2 * units(53, 1)
    scores = score_retrieval(images, texts, owners, chunk=chunk)
    for rank in (1, 5, 10):
        expected = brute_force(images, texts, owners, rank)
        assert (scores.image_to_text[rank], scores.text_to_image[rank]) == pytest.approx(expected)
    assert 0.2 < scores.mean(1) < 0.95


def test_ties_are_ties_whatever_the_chunk() -> None:
    images, texts = units(30, 6), units(30, 7)
    texts[20:] = texts[:10]
    scores = [score_retrieval(images, texts, range(30), chunk=chunk) for chunk in (1, 7, 1024)]
    assert scores[0] == scores[1] == scores[2]
    twins = np.stack([images[0], images[0], images[2]])
    assert score_retrieval(twins, twins, range(3)).image_to_text[1] == pytest.approx(1 / 3)


def test_a_difference_below_single_precision_is_a_tie() -> None:
    images, texts = units(3, 10).astype(np.float64), units(3, 10).astype(np.float64)
    images[1], texts[1] = images[0], texts[0] * (1 - 1e-12)
    assert score_retrieval(images, texts, range(3)).image_to_text[1] == pytest.approx(1 / 3)


def test_given_similarities_score_like_the_vectors_behind_them() -> None:
    images, owners = units(20, 8), [row % 20 for row in range(53)]
    texts = images[owners] + 1.2 * units(53, 9)
    similarity = images.astype(np.float64) @ texts.astype(np.float64).T
    assert score_similarity(similarity, owners) == score_retrieval(images, texts, owners)


def test_equal_vectors_find_nothing() -> None:
    same = np.ones((6, 4), dtype=np.float32)
    scores = score_retrieval(same, same, range(6))
    assert (scores.image_to_text[5], scores.text_to_image[5]) == (0, 0)


def test_pools_are_full_sets_in_order() -> None:
    images = units(23, 2)
    texts = images + 0.9 * units(23, 3)
    scores = score_retrieval(images, texts, range(23), pool=10)
    parts = [
        score_retrieval(images[start : start + 10], texts[start : start + 10], range(10))
        for start in (0, 10)
    ]
    assert scores.mean(1) == pytest.approx(np.mean([part.mean(1) for part in parts]))
    assert (scores.num_pools, scores.num_images) == (2, 20)


def test_random_vectors_recall_about_one_in_the_pool() -> None:
    scores = score_retrieval(units(400, 4), units(400, 5), range(400), pool=40)
    assert scores.mean(1) == pytest.approx(1 / 40, abs=0.02)


def test_an_image_without_a_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="every one of the 4 images needs a caption"):
        score_retrieval(units(4, 0), units(3, 1), [0, 1, 2])
