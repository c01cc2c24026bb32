"""Published experiments, reproduced: the paper's figures beside ours, one experiment a file.

`goodfellow2015` names its experiments in a table; general measurements belong in `explain`.
"""
