"""Knapsacks and k-means: algorithms on numbers, whatever network they are of."""
