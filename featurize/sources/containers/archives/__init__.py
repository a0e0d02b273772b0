"""What reading tar shards and zip archives takes."""
