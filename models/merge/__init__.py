"""Merge methods, recipes, and merged models as sources of tensors."""
