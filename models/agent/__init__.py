"""HM3's search: surrogate, proposals, actor and critic, offline training, online search.

What it shares with other searches is in ``models/search``; ``hm3``, ``paper`` and ``paper_policy`` are the bench's.
"""
