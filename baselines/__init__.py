"""The black-box searches that people use for the compressor's job: the same network, data, trainer, splits and file.

A search proposes numbers of a `Space`; the `Objective` turns them into a plan that fits the target, fine-tunes the
network under it and returns its validation accuracy. The best proposal then gets as many final steps as the compressor
has in all. `python -m baselines list` names the methods.
"""
