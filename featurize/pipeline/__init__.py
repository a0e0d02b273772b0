"""Images to rows: decode ahead, run in batches, write behind."""
