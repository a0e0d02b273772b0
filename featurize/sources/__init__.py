"""Where images come from: what lists them, under a path and with a stamp."""
