"""The layers around softmax attention, and their duals."""

from equivalence.layers.feed_forward import feed_forward, feed_forward_dual
from equivalence.layers.stacks import AttentionLayer, LayerDual, LayerNorm, stack, stack_duals

__all__ = [
    "AttentionLayer",
    "LayerDual",
    "LayerNorm",
    "feed_forward",
    "feed_forward_dual",
    "stack",
    "stack_duals",
]
