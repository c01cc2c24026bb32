"""Is an evaluation reliable? Checks for the known signs of attack failure, each with threshold, source and remedy.

Probes, traces, control attacks and the binarization test; `diagnosis_record` and `binarization_record` need no torch.
"""
