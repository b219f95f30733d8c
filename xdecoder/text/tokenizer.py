"""CLIP's byte-pair encoding, whole or cut to its first merges."""

import functools
import re
import unicodedata
from collections.abc import Sequence

import torch
from jaxtyping import Int
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from xdecoder.config import ConfigError

# 256 bytes, inside and at the end of a word
NUM_BYTE_SYMBOLS = 512
NUM_MERGES = 48894
_BEFORE_PUNCTUATION = re.compile(r"\s+(?=[.,;:!?])")


class Tokenizer:
    """Texts to token ids and back.

    Start and end of text are the two last ids; the end also pads. Any text can be written with
    any number of merges, because every byte is a symbol.
    """

    def __init__(self, *, context_length: int, num_merges: int | None = None) -> None:
        num_merges = NUM_MERGES if num_merges is None else num_merges
        if not 0 <= num_merges <= NUM_MERGES:
            raise ConfigError(
                f"model.text.num_merges must be in 0..{NUM_MERGES} or None for all; "
                f"got {num_merges}."
            )
        if context_length < 3:
            raise ConfigError(
                "model.text.context_length must be at least 3 (start, one token, end); "
                f"got {context_length}."
            )
        self.context_length = context_length
        self.vocabulary_size = NUM_BYTE_SYMBOLS + num_merges + 2
        self.start_id = self.vocabulary_size - 2
        self.end_id = self.vocabulary_size - 1
        self._bpe = _first_merges(num_merges)
        self._ids = functools.lru_cache(maxsize=65536)(self._encode)

    def __call__(self, texts: Sequence[str], *, length: int | None = None) -> Int[Tensor, "n t"]:
        """Token ids, start first, padded with end-of-text to the longest text or to `length`.

        A text longer than the context length is cut and ends with end-of-text.
        Raises: TypeError for a bare string.
        """
        if isinstance(texts, str):
            raise TypeError(
                f"Tokenizer: texts must be a sequence of strings; got {texts!r}. Wrap it."
            )
        rows = [self._ids(text) for text in texts]
        width = length or max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), width), self.end_id, dtype=torch.int64)
        for i, row in enumerate(rows):
            kept = row if len(row) <= width else (*row[: width - 1], self.end_id)
            ids[i, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        return ids

    def decode(self, ids: Sequence[int] | Int[Tensor, " t"]) -> str:
        """The text up to the first end-of-text, without the start token.

        The encoding sets punctuation apart; here it joins the word before it again.
        """
        kept = []
        for token in ids.tolist() if isinstance(ids, Tensor) else ids:
            if token == self.end_id:
                break
            if token != self.start_id:
                kept.append(token)
        return _BEFORE_PUNCTUATION.sub("", self._bpe.decode(kept)).strip()

    def _encode(self, text: str) -> tuple[int, ...]:
        body = self._bpe.encode(text)[: self.context_length - 2]
        return (self.start_id, *body, self.end_id)

    def __getstate__(self) -> dict[str, int]:
        # the cache of texts cannot be pickled, and a copy should be cheap
        return {
            "context_length": self.context_length,
            "num_merges": self.vocabulary_size - NUM_BYTE_SYMBOLS - 2,
        }

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@functools.cache
def _first_merges(num_merges: int) -> SimpleTokenizer:
    """open_clip's tokenizer with its first merges only, and the cleaning of CLIP's own."""
    bpe = SimpleTokenizer()
    bpe.clean_fn = _clean
    symbols = list(bpe.encoder)[: NUM_BYTE_SYMBOLS + num_merges]
    merges = list(bpe.bpe_ranks)[:num_merges]
    bpe.encoder = {symbol: i for i, symbol in enumerate(symbols)}
    bpe.decoder = dict(enumerate(symbols))
    bpe.bpe_ranks = {merge: i for i, merge in enumerate(merges)}
    # without this the names of the special tokens would be single symbols that are not there
    bpe.cache = {}
    return bpe


def _clean(text: str) -> str:
    """Composed characters, single spaces, lower case; HTML entities stay as they are written."""
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()
