"""Where files lie: on this machine, or behind a URL."""
