"""Families of models that are made here: experts fine-tuned from data, and their profile.

The two made for trying hm3 out are in ``tiny`` and ``tiny_vision``; merging is in ``models/merge``.
"""
