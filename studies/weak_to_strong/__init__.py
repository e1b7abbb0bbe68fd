"""A small model's guide steers a large base: what it recovers of a fine-tune, and at what speed."""
