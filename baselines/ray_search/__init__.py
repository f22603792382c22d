"""Searches with Ray Tune, on this machine or a cluster. Importing this loads no Ray; a search does."""

from baselines.ray_search.searchers import RayAsha, RayOptuna, RayPbt, RayPrice, RaySearcher

__all__ = ["RayAsha", "RayOptuna", "RayPbt", "RayPrice", "RaySearcher"]
