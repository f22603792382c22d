"""Searches with Optuna, by one loop of ask and tell."""

from baselines.optuna_search.searcher import OptunaSearcher

__all__ = ["OptunaSearcher"]
