"""The ball around each example, {z : |z - x| <= eps, lo <= z <= hi}: exact projections and linear maximisers.

One norm a file (`linf`, `l2`, `l1`, `l0`) on top of the contract in `ball`; `registry` names them. All geometry is
asked of a ball: no other room knows a norm by its name.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
