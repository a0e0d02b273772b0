"""Labels that are not one class an image: several labels, numbers, grades."""
