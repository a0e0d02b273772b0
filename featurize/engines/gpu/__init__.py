"""What runs networks on a GPU: copies beside arithmetic, and CUDA graphs."""
