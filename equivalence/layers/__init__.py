"""Beyond one head: layers and stacks of them, each beside its dual."""

from equivalence.layers.stacks import AttentionLayer, LayerDual, LayerNorm, stack, stack_duals

__all__ = ["AttentionLayer", "LayerDual", "LayerNorm", "stack", "stack_duals"]
