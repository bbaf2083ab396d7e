"""The made family `tiny-vision`: pictures that installed packages ship, and a small ViT trained on them.

How images are scored is in ``tasks/objectives/images``.
"""
