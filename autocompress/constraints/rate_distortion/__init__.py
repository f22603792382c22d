"""Entropy-constrained quantization at one multiplier: rates, assignment, codebooks, projection."""
