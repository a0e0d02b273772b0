"""What a cache lacks, and how it gets it."""
