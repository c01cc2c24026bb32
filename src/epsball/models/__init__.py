"""Whatever a user calls a model becomes a torch module of logits: one door a file, and the built-in networks.

Black boxes that have no gradient are wrapped in `models.black_box`; what makes a network faster is `acceleration`.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
