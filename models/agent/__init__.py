"""HM3's search: surrogate, proposals, and the online search; what a search has learned, as an agent.

What it shares with other searches is in ``models/search``; ``hm3`` is the bench's.
"""
