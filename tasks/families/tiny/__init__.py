"""The made family `tiny`: its items, its tokenizer, and how its models are trained.

Fine-tuning of a user's own base is in ``tasks/families/finetune.py``.
"""
