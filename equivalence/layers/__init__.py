"""The layers around softmax attention, and their duals."""

from equivalence.layers.feed_forward import feed_forward, feed_forward_dual

__all__ = ["feed_forward", "feed_forward_dual"]
