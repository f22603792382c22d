"""How each kind of target is met: a projection onto its budget inside the run, the real count at its end."""
