"""Videos to datasets, and datasets to batches."""
