"""Which token comes next: the likeliest at every step, or the best of several beams."""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Ids = tuple[int, ...]


class NextTokens(Protocol):
    """Logits of the next token of texts that grow; `CaptionStream` is one."""

    def step(self, token_ids: Int[Tensor, " s"]) -> Float[Tensor, "s v"]:
        """Logits of what follows each stream's new token."""
        ...

    def reorder(self, streams: Int[Tensor, " s"]) -> None:
        """Go on with some of the streams, in another order."""
        ...


class Ends(Protocol):
    """Where texts start and end."""

    @property
    def start_id(self) -> int: ...

    @property
    def end_id(self) -> int: ...


class Found(NamedTuple):
    """Tokens after the start, with the end where there is one, and their log probability."""

    ids: Ids
    log_prob: float


def greedy(stream: NextTokens, ends: Ends, num_images: int, max_tokens: int) -> list[Found]:
    """The likeliest token at every step, until the end or `max_tokens` tokens."""
    token = torch.full((num_images,), ends.start_id)
    texts: list[list[int]] = [[] for _ in range(num_images)]
    log_probs = [0.0] * num_images
    is_open = [True] * num_images
    for _ in range(max_tokens):
        best, token = stream.step(token).log_softmax(-1).max(-1)
        for image, (value, chosen) in enumerate(zip(best.tolist(), token.tolist(), strict=True)):
            if is_open[image]:
                texts[image].append(chosen)
                log_probs[image] += value
                is_open[image] = chosen != ends.end_id
        if not any(is_open):
            break
    return [Found(tuple(ids), value) for ids, value in zip(texts, log_probs, strict=True)]


def beam_search(
    stream: NextTokens, ends: Ends, num_images: int, max_tokens: int, num_beams: int
) -> list[Found]:
    """The text with the largest mean log probability per token among those the beams reach.

    The streams are the beams of the first image, then those of the second, and so on.
    """
    beams = [[Found((), 0.0)] for _ in range(num_images)]
    ended: list[list[Found]] = [[] for _ in range(num_images)]
    token = torch.full((num_images * num_beams,), ends.start_id)
    for _ in range(max_tokens):
        log_probs = stream.step(token).log_softmax(-1).unflatten(0, (num_images, num_beams))
        order, chosen = [], []
        for image in range(num_images):
            origin, grown = _grow(beams[image], log_probs[image], ends, num_beams)
            ended[image] += [each for each in grown if each.ids[-1] == ends.end_id]
            alive = [i for i, each in enumerate(grown) if each.ids[-1] != ends.end_id][:num_beams]
            beams[image] = [grown[i] for i in alive]
            # where fewer texts than beams are open, the streams left over run along unread
            spare = num_beams - len(alive)
            order += [image * num_beams + i for i in [*(origin[i] for i in alive), *[0] * spare]]
            chosen += [*(grown[i].ids[-1] for i in alive), *[ends.end_id] * spare]
        if all(_is_settled(*each, num_beams) for each in zip(beams, ended, strict=True)):
            break
        stream.reorder(torch.tensor(order, device=token.device))
        token = torch.tensor(chosen, device=token.device)
    return [
        max([*done, *alive], key=_mean_log_prob) for alive, done in zip(beams, ended, strict=True)
    ]


def _grow(
    beams: list[Found], log_probs: Float[Tensor, "k v"], ends: Ends, num_beams: int
) -> tuple[list[int], list[Found]]:
    """The best texts that are one token longer, twice as many as beams: half of them may end."""
    sums = torch.tensor([each.log_prob for each in beams], device=log_probs.device)
    # before the first token all beams are the same text
    totals = sums[:, None] + log_probs[: len(beams)]  # [beams, V]
    best, flat = totals.flatten().topk(min(2 * num_beams, totals.numel()))
    origins = (flat // totals.shape[1]).tolist()
    tokens = (flat % totals.shape[1]).tolist()
    grown = [
        Found((*beams[origin].ids, token), value)
        for origin, token, value in zip(origins, tokens, best.tolist(), strict=True)
    ]
    return origins, grown


def _is_settled(alive: list[Found], ended: list[Found], num_beams: int) -> bool:
    """Whether none is open, or as many as beams have ended, all better than any open one is now."""
    if not alive:
        return True
    best = sorted(map(_mean_log_prob, ended), reverse=True)[:num_beams]
    return len(best) == num_beams and best[-1] >= max(map(_mean_log_prob, alive))


def _mean_log_prob(text: Found) -> float:
    return text.log_prob / max(len(text.ids), 1)
