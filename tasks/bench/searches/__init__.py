"""`hm3 bench front`: searches side by side, on one evaluator, one accounting and the same seeds."""
