import torch

from xdecoder.losses.world import World
from xdecoder.outputs import DecoderOutput, LayerPrediction
from xdecoder.queries import QueryLayout
from xdecoder.tasks.base import divisors, full_precision, keyed, loss_key, stacked


def output_of(num_predictions):
    layers = tuple(
        LayerPrediction(
            embeddings=torch.full((1, 4, 2), float(layer)), mask_embeddings=torch.zeros(1, 4, 2)
        )
        for layer in range(num_predictions)
    )
    return DecoderOutput(
        layers=layers, layout=QueryLayout(num_latents=3), mask_features=torch.zeros(1, 2, 3, 5)
    )


def test_a_cut_off_keeps_the_last_predictions():
    output = output_of(5)
    kept = stacked(output, "embeddings", output.layout.latents, 2)
    assert kept.shape == (2, 1, 3, 2)
    assert kept[:, 0, 0, 0].tolist() == [3, 4]
    assert len(stacked(output, "embeddings", output.layout.latents, 9)) == 5


def test_terms_of_the_last_predictions_keep_their_layer_numbers():
    terms = keyed("task", "term", torch.tensor([1.0, 2.0]), 10.0, 5)
    assert {key: value.item() for key, value in terms.items()} == {
        loss_key("task", "term", 3): 10.0,
        loss_key("task", "term", 4): 20.0,
    }


def test_counts_below_one_are_kept_and_nothing_becomes_one():
    """Half a phrase per process is one phrase among two processes."""
    counts = divisors({"a": 6.0, "b": 0.5, "c": 0.0}, World(), torch.device("cpu"))
    assert {key: value.item() for key, value in counts.items()} == {"a": 6, "b": 0.5, "c": 1}


def test_half_precision_is_widened_and_nothing_is_narrowed():
    assert full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
