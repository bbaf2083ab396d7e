"""The made family `tiny`: its items, its tokenizer, and how its models are trained."""
