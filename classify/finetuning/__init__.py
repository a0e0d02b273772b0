"""Train the network too (torch)."""
