"""Searches with Ray Tune, on this machine or a cluster. Importing this loads no Ray; a search does."""

from baselines.ray_search.searchers import RayAsha, RayMultipliers, RayOptuna, RayPbt, RaySearcher

__all__ = ["RayAsha", "RayMultipliers", "RayOptuna", "RayPbt", "RaySearcher"]
