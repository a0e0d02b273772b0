"""Training of heads for several labels, numbers and grades."""
