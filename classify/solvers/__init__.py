"""How the parameters of one head are found on arrays."""
