"""The stages, a module each, and what they are made of: objectives, scores, fronts, registry, report.

Mathematics is in ``models``; who starts a stage, and where it is shown, in ``flows``.
"""
