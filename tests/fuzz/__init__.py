"""Hostile inputs for everything a guest, or what stands behind a device, can reach: random, and valid ones gone wrong.

``python -m tests.fuzz TARGET COUNT SEED`` makes about COUNT inputs and prints what became of them. They come in
*episodes*, each with a fresh guest and random numbers of its own, so that a fault is replayed by its seed and episode.
The unit tests run a small number of each; ``PYXEN_FUZZ=N`` makes it N times as many.
"""
