"""The layers around softmax attention, and their duals."""

from equivalence.layers.feed_forward import feed_forward, feed_forward_dual
from equivalence.layers.heads import (
    joint_key_features,
    joint_labels,
    joint_query_features,
    multi_head_attention,
)
from equivalence.layers.positions import rotary, rotary_attention
from equivalence.layers.stacks import AttentionLayer, LayerDual, LayerNorm, stack, stack_duals

__all__ = [
    "AttentionLayer",
    "LayerDual",
    "LayerNorm",
    "feed_forward",
    "feed_forward_dual",
    "joint_key_features",
    "joint_labels",
    "joint_query_features",
    "multi_head_attention",
    "rotary",
    "rotary_attention",
    "stack",
    "stack_duals",
]
