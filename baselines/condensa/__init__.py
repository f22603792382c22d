"""Condensa (Joseph et al. 2020): schemes, the L-C solver, and the search for one global sparsity in ten samples.

A scheme says what compressing is, the solver trains a network under it, and the search finds how much to prune: it asks
where the accuracy to be kept is lost, then for the best of what keeps it. All three follow the paper and its published
code's schedule; the trainer's batches, the last phase and the file are those of all methods here.
"""
