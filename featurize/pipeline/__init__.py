"""From images to rows: decode in threads, run in batches, write in a thread."""
