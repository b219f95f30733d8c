"""Penn Treebank tokens of English captions, as the caption metrics expect them.

The caption metrics of COCO are defined on the output of Stanford's PTBTokenizer, lower-cased and
without punctuation. These rules give the same tokens without Java. Tokens that the metrics drop
(quotes, stops, dashes) are recognised only as far as they separate words.
"""

import re
from collections.abc import Sequence

# as in pycocoevalcap/tokenizer/ptbtokenizer.py; brackets are listed there in capitals while the
# tokenizer writes them in small letters, so that official scores keep them: we do too
PUNCTUATION = frozenset(
    [
        "''",
        "'",
        "``",
        "`",
        "-LRB-",
        "-RRB-",
        "-LCB-",
        "-RCB-",
        ".",
        "?",
        "!",
        ",",
        ":",
        "-",
        "--",
        "...",
        ";",
    ]
)
BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "`", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "´": "'"}
    | {"½": "1/2", "¼": "1/4", "¾": "3/4"}
)
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|prof|gen|rep|sen|gov|lt|col|sgt|capt|hon|rev|vs|etc|ave|blvd|inc|ltd|"
    "corp|co|bros|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mt|ft|messrs"
)
_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_TOKEN = re.compile(
    r"""
      (?P<web>   https?://\S+ | www\.\S+\w | [\w.+-]+@[\w-]+\.[\w.]*\w )
    | (?P<smile> [:;=]-?[()DP](?!\w) )
    | (?P<decade> '\d\ds\b )
    | (?P<tag>   <\w+> )
    | (?P<short> (?:[a-z]\.){2,}(?:[a-z]\b)? | \b(?:ABBREVIATIONS)\. | \bno\.(?=\s*\d) )
    | (?P<number> \d+(?:[.,:/-]\d+)*(?![\w]) )
    | (?P<and>   'n' | 't(?:is|was)\b )
    | (?P<clitic> n't\b | '(?:s|re|ve|ll|d|m)\b )
    | (?P<name>  [od]'[^\W\d_]{2,} )
    | (?P<word>  [^\W_]+ (?: (?:[-/&_.@] (?=[^\W_]) [^\W_]+) )* )
    | (?P<user>  @\w+ )
    | (?P<cry>   [!?]{2,} )
    | (?P<dots>  \.{2,} )
    | (?P<dash>  -{2,} )
    | (?P<other> \S )
    """.replace("ABBREVIATIONS", _ABBREVIATIONS),
    re.VERBOSE,
)
_NEGATION = re.compile(r"([^\W_]+?)(n't)\b")


def ptb_tokens(caption: str) -> list[str]:
    """The lower-case tokens of one caption that the caption metrics count."""
    text = caption.translate(_TYPOGRAPHY).lower()
    text = _NEGATION.sub(r"\1 \2", text)
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        tokens.extend(_normal_forms(match.group()))
    return [token for token in tokens if token not in PUNCTUATION and token != '"']


def ptb_sentences(captions: Sequence[str]) -> list[str]:
    """Captions as tokens joined by spaces, the form that the scorers take."""
    return [" ".join(ptb_tokens(caption)) for caption in captions]


def _normal_forms(token: str) -> tuple[str, ...]:
    if token[-1] in BRACKETS:
        return (token[:-1] + BRACKETS[token[-1]],)
    if token.startswith("..") or token.startswith("--"):
        return (token[:3] if token == "..." else token[:1],)
    return _SPLIT_WORDS.get(token, (token,))
