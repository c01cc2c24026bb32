"""Intermediate bounds once more, in a domain: a split narrows what the neurons after it read.

With the bounds of the root, branch and bound stalls in deep networks: a split then changes the lines of one neuron.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from epsball.certify.concretise import Regions
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, bounded, crown
from epsball.certify.interval import intersected
from epsball.certify.operators import Bounds
from epsball.certify.rounding import Rounding
from epsball.certify.splits import Neurons

BOXES = 32
"""Domains whose bounds are computed together."""


def tightened(
    graph: Graph,
    regions: Regions,
    low: Float[Tensor, "d n"],
    high: Float[Tensor, "d n"],
    rounding: Rounding | None = None,
) -> Intermediate:
    """CROWN's bounds of every node in D domains, whose neurons are known to read `low` to `high`.

    `regions` are those of the domains, one each: in what comes back a domain stands where else an example does.
    """
    neurons, known = Neurons(graph), dict[int, Bounds]()
    for number in neurons.starts:
        place, here = graph.before(number), (neurons.part(low, number), neurons.part(high, number))
        known[place] = intersected(known[place], here) if place in known else here
    return bounded(graph, regions, crown, rounding, known)
