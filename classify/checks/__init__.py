"""What to look at before believing a score: duplicates, wrong labels, small classes."""
