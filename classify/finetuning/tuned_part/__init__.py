"""What of a network is tuned: from where on, how fast, and by adapters or wholly."""
