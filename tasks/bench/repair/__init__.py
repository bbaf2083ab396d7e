"""What repairing seams gains: the benchmark `repair`."""
