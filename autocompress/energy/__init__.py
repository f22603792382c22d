"""What a forward pass costs: the accelerator model, the energy of a network, its channels, meters."""
