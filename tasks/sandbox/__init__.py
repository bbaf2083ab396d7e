"""Programs that a model wrote, run where they can harm nobody.

Which tasks ask for them, and what a verdict counts, is in ``tasks/objectives/code_metrics.py``.
"""
