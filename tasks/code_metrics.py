"""The name under which task files know pass@k: ``!function tasks.code_metrics.pass_at_k``."""

from tasks.objectives.code_metrics import pass_at_k as pass_at_k
