"""Projections onto the networks that cost at most a budget: pure functions over tensors, on any device.

`kmeans` fits scalar codebooks, `pruning` chooses the nonzeros for given bits (a 0-1 knapsack), `allocation` the bits
for given nonzeros (a multiple-choice knapsack), `alternating` puts the three together for a weight-data budget.
"""
