"""HM3's search: surrogate, proposals, actor and critic, offline training, online search.

What it shares with other searches is in ``models/search``. ``hm3.py`` and the published algorithm (``paper.py``,
``paper_policy.py``) run in comparisons alone.
"""
