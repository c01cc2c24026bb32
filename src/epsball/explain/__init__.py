"""Why there are adversarial examples: one hypothesis a file, which measures it and returns a record.

`plots/` draws the records and is imported by nothing here but the runner.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
