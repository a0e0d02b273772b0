"""What a head is: its kinds, its trained model, its file, its use."""
