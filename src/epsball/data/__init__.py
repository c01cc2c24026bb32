"""Whatever a user calls data becomes examples with ids, labels and a box: one door a file; tables with a target column.

What is done with the examples belongs elsewhere.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
