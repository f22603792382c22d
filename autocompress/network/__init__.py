"""A network as it lives in memory, what of it is compressed, and what a compressed tensor is."""
