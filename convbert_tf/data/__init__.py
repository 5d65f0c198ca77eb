"""Documents to TFRecord shards to batches."""
