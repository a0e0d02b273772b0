"""What is installed, what the machine has, and whether the whole works: `featurize doctor`."""
