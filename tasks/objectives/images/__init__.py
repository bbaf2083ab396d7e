"""Objectives of images: data sets, heads, and the kind that scores them.

The encoder's paths are in ``models/paths/vision.py``; heads as files in ``models/sources``.
"""
