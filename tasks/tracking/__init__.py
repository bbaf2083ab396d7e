"""What MLflow is told of a run: parameters, metrics, data versions; spooled while it is away.

Registered models are in ``tasks/registry``.
"""
