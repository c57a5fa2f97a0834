"""From videos to a stored dataset: checks, flow, encoding, shards, resuming."""
