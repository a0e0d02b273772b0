"""Labels: from a table, or from the names of folders."""
