"""`run`: decide what there is to do, and do it; `verify` and `export`."""
