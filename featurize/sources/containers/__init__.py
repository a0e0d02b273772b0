"""Files that hold many images: tar shards, zip archives, tables."""
