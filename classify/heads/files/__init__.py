"""What files of heads hold, checked as it is read."""
