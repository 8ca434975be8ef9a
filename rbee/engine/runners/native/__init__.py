"""Models of the Llama family on our own CPU kernels."""
