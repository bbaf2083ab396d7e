"""MLflow's model registry: versions of members, aliases, promotion by gates, and models that are served.

Runs and metrics go to MLflow in ``tasks/tracking``.
"""
