from epsball.data.arrays import from_arrays as from_arrays
from epsball.data.collected import examples_of as examples_of
from epsball.data.examples import Examples as Examples
from epsball.data.lazy_examples import LazyExamples as LazyExamples
from epsball.data.load import load_data as load_data
from epsball.data.load import open_data as open_data
