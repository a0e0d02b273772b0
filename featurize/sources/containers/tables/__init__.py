"""Tables: their files, their columns, their rows."""
