"""`run`: find the rows to process, and process them; `verify` and `export`."""
