"""What a model computes between its matrix products: plain PyTorch for every device, Triton for CUDA."""
