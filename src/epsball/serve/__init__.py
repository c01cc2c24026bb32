"""The page: one image, a ball that grows under the hand, and what a classifier says of its worst point.

A small server on this machine alone answers questions about models and data that it was started with; everything else,
which image, which ball, which attack, is in the question, so that it remembers nothing between two of them.
"""
