"""Groups proposed for a label table, and what they change."""
