"""Published experiments, made again: the paper's figures beside ours.

`goodfellow2015.py` names the paper's experiments in a table, EXPERIMENTS; each has a file of its own.
"""
