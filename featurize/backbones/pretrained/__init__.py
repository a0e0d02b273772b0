"""Networks with published weights: torchvision's, timm's, those of the hub and of a package."""
