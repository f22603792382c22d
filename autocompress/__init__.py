"""Compress a trained PyTorch network to a file of the size you ask for."""
