"""What a path or URL is: images, containers of images, or a list of them."""
