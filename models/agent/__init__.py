"""The agent: paths as a Markov decision process, its networks, offline training and online search."""
