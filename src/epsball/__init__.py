"""epsball measures robust accuracy: it searches the worst input within eps of each example and re-verifies it.

The public names are listed in `__init__.pyi`, and imported when they are first used.
"""

from epsball.common.lazy import lazy_names
from epsball.common.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_names(__name__)
