"""What a study asks for: its specification and its cells."""
