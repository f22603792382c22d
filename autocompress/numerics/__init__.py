"""Algorithms that know no network: knapsacks, k-means."""
