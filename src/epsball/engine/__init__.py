"""How attacks are run: the queue (continuous batching), a user's own attack, stages, and the named protocols.

What happens to the outcome of a stage - verification, records, files - belongs in `evaluation`.
"""
