"""How an architecture reads a batch, decodes with a cache, and is cut between its layers."""
