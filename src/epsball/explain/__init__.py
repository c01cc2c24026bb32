"""Why there are adversarial examples: `analyses/` measure one hypothesis a file and return records.

`plots/` draws the records and is imported by nothing here but the runner. A page of all of them belongs in `report`.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
