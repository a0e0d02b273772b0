"""What a network is trained for, by kind of labels."""
