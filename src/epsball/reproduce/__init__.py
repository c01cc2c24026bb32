"""Published experiments, made again: one paper per file, its figures beside ours.

Each module holds a literal table `EXPERIMENTS` of its experiments' functions; `epsball reproduce` runs them.
"""
