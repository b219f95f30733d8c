"""The words of the scenes: what there is to see, and which pairs training never shows."""

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SIZES = ("small", "large")
STUFF = ("sky", "grass", "water", "sand", "brick")

# how a sentence places a thing on each kind of stuff
PLACES = {
    "sky": "in the sky",
    "grass": "on the grass",
    "water": "in the water",
    "sand": "on the sand",
    "brick": "on the brick wall",
}
# how a sentence names each kind of stuff as a region of its own
REGIONS = {
    "sky": "sky",
    "grass": "grass",
    "water": "water",
    "sand": "sand",
    "brick": "a brick wall",
}

# one pair for five of the shapes, five different colours: every colour and every shape is learned
# from other pairs, and only their combination is new
HELDOUT_PAIRS = (
    ("blue", "circle"),
    ("yellow", "square"),
    ("red", "star"),
    ("purple", "triangle"),
    ("green", "heart"),
)

# COCO category ids, things first
CATEGORY_IDS = {name: index + 1 for index, name in enumerate(SHAPES + STUFF)}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What can be said about one thing by itself."""

    shape: str
    colour: str
    size: str

    @property
    def is_heldout(self) -> bool:
        """Whether training never shows this colour on this shape."""
        return (self.colour, self.shape) in HELDOUT_PAIRS
