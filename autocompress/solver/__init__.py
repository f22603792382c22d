"""The method beside its equations: lazy projection, the ADMM of the paper, the path of the budget, their constants."""
