"""The project's folder: workspace, references to models, records that stages hand on, progress, git.

What may stand in its parameter files is in ``tasks/schema``; files elsewhere are in ``tasks/storage``.
"""
