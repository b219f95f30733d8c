"""Loss terms as pure functions: matching, point-sampled masks, contrastive and caption terms."""

from xdecoder.losses.draws import Draws, RecordedDraws, UniformSource
from xdecoder.losses.world import World

__all__ = ["Draws", "RecordedDraws", "UniformSource", "World"]
