"""Models as they lie on disk or on the hub: checkpoints, adapters, GGUF, heads, vocabularies.

What is made of them is in ``models/merge`` and ``models/paths``.
"""
