"""The data: captures and their sources, geometry, co-visibility, the scene index with its shards, and batches."""
