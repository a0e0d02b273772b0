"""The command `featurize`."""
