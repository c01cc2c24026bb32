"""Is a verdict to be believed? Indicators of a failed evaluation, each with its threshold, its source and a remedy.

`whole.py` has `epsball.diagnose`; `record.py` what it finds, and needs no torch.
"""
