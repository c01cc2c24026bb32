"""The evaluation: shards through stages, the run directory, the result; its verification and comparison.

`evaluate` is the way in; `shard.py` lists what happens between a finished attack and a record. Attacks are in
`attacks`, the queue that runs them in `engine`, pages about a run in `report`.
"""
