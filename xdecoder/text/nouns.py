"""The nouns of a caption, found by rules: no model and no data to download.

A noun phrase begins behind a determiner, a number, a preposition or a conjunction and ends before
the next such word, a verb or a mark; its last word is the noun. Captions of photographs are plain
enough for this; what it gets wrong is a word of the caption all the same.
The released X-Decoder asks nltk's tagger, whose data must be downloaded, and compares Lancaster
stems; ours are singular forms.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*|\S")
_OPENING = _words(
    "a an the this that these those his her its their our my your some any each every another "
    "other no many several few both all various different multiple one two three four five six "
    "seven eight nine ten of in on at by with near behind beside under over above below between "
    "among around across along through into onto from to for against inside outside next "
    "toward towards upon within without off down up and or while as"
)
# they end a phrase, and what follows them is not a noun phrase by itself
_CLOSING = _words(
    "is are was were be been being am has have had do does did can could will would may there "
    "it he she they them him we you i who which what where when how that's it's not but if so "
    "than then too very just only also together away out back here each-other itself himself "
    "herself themselves something someone ready able about like during"
)
_ADJECTIVES = _words(
    "red green blue yellow white black brown gray grey orange pink purple golden silver dark "
    "light bright colorful big small large little tiny huge tall short long wide old young new "
    "old-fashioned cute nice clean dirty empty full open wooden metal plastic wet dry hot cold "
    "fresh beautiful busy sunny cloudy grassy sandy snowy rocky brick male female same"
)
_VERBS = _words(
    "sit stand ride walk run play hold look wear eat fly lie lay lean carry drive show hang "
    "watch wait talk pose rest sleep jump swing throw catch hit kick cross face feature contain "
    "hover fall float graze perch line fill cover surround get give go come take make put use "
    "have prepare cut try pull push read drink cook serve swim ski skate surf travel move pass "
    "appear seem smile enjoy gather reach point rise stop turn share fight race roll climb "
    "chase follow lick sniff stare stretch peek"
)
_PAST_OR_IRREGULAR = _words(
    "sat stood rode ran held wore ate flew lay laid drove shown seen hung thrown caught taken "
    "made put cut driven ridden eaten worn held kept left set stuck lit found"
)
# they end like participles
_NOUNS_IN_ING_OR_ED = _words(
    "building ceiling morning evening string ring king wing painting clothing wedding railing "
    "siding thing spring sling swing crossing awning icing stuffing pudding frosting bed shed "
    "weed seed sled moped"
)
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "knives": "knife",
    "wolves": "wolf",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "scissors": "scissors",
    "skis": "ski",
}


def nouns_of(caption: str) -> tuple[str, ...]:
    """The nouns of a caption as they are written, lower-case, each once, in order."""
    phrase: list[str] = []
    nouns: list[str] = []
    for word in [*_WORD.findall(caption.lower()), "."]:
        if _continues(word, phrase):
            phrase.append(word)
        elif _is_participle(word) and (not phrase or phrase[-1] in _ADJECTIVES):
            # as in "a parked car"
            continue
        else:
            if phrase and phrase[-1] not in _ADJECTIVES:
                nouns.append(phrase[-1])
            phrase = []
    return tuple(dict.fromkeys(nouns))


def word_stem(words: str) -> str:
    """Lower-case words with the last one in the singular: what names the same kind of thing."""
    *before, last = words.lower().split() or [""]
    return " ".join([*before, _singular(last)])


def _continues(word: str, phrase: list[str]) -> bool:
    if not word[0].isalpha() or word in _OPENING or word in _CLOSING or word.endswith("ly"):
        return False
    if word in _NOUNS_IN_ING_OR_ED or word in _ADJECTIVES:
        return True
    # "a walk" is a noun, "a man walks" has none after the man
    return not (_is_participle(word) or (_is_verb(word) and phrase))


def _is_participle(word: str) -> bool:
    if word in _NOUNS_IN_ING_OR_ED or word in _ADJECTIVES:
        return False
    return word.endswith(("ing", "ed")) or word in _PAST_OR_IRREGULAR


def _is_verb(word: str) -> bool:
    return word in _VERBS or _singular(word) in _VERBS


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word
