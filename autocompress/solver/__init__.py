"""The solver: lazy projection, the ADMM of the paper, the path of the budget, and the runs that `compress` makes."""
