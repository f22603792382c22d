"""One file for each kind of target: its cost, its projection and its file."""
