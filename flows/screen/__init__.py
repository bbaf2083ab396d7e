"""What a run shows while it goes on: lines on the terminal, and artifacts in Prefect.

Events come from ``tasks/project/progress.py``; the report is in ``tasks/report``.
"""
