"""The engine: candidates in, item scores out, each journalled; in this process or in Ray workers.

What an item is and is worth is in ``tasks/objectives``; budgets are charged in ``models/search``.
"""
