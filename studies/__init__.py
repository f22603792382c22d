"""Studies: what the compressor and other methods cost and find."""
