"""The evaluation: shards through stages, the run directory, the result; its verification and comparison.

`evaluate` is the way in. Attacks and the queue are in `attacks` and `engine`, pages about a run in `report`.
"""
