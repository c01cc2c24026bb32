"""The page on this machine: questions about models and data over HTTP, answered without remembering anything.

It is bound to 127.0.0.1 and asks nothing of anybody else; pages about finished runs are in `report`.
"""
