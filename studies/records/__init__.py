"""What a cell leaves: one file each, and what stands in it."""
