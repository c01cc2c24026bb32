"""Linear models, where everything is known exactly: the worst input, the distance to the boundary, robust training.

Networks are attacked in `attacks`; `linear` and `attacks` never import each other.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
