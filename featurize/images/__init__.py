"""One image: read, checked, decoded, prepared for a network."""
