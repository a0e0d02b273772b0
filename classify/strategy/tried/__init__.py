"""What `auto` tried: its candidates, and whether another one would have been better."""
