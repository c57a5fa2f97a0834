"""Batches of a stored dataset, to train and to evaluate."""
