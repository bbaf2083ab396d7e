"""Merge methods, recipes in mergekit's YAML, and merged models as sources of tensors.

Models that are read are in ``models/sources``; which recipes are tried is decided by a search.
"""
