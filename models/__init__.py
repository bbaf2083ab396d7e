"""The mathematics: merges, paths through layers, fronts, and the searches over them.

It knows models and tensors, and neither projects, tasks, servers nor files but those of models.
"""
