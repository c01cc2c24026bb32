"""The command line: one command a file, which parses, calls one library function, and prints.

`main` is the way in. No module here imports torch before a command runs, so that `--help` answers at once.
"""
