"""What candidates are scored on: lm-eval tasks and images, their items by split, and what one item is worth.

How scores are scheduled and kept is in ``tasks/scoring``; how paths answer, in ``models/paths``.
"""
