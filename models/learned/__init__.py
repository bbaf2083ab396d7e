"""Merges whose numbers are learned from texts: Gram matrices of layers' inputs, and gradients of coefficients.

The formulas that use them are merge methods like the others, in ``models.merge.learning``.
"""
