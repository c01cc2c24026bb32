"""Is an evaluation reliable? Indicators of a failed evaluation, each with its threshold, its source and a remedy.

Probes, traces, controls and the binarization test; `record` is what they find, and needs no torch.
"""
