from epsball.balls.linf import Linf as Linf
from epsball.balls.l2 import L2 as L2
from epsball.balls.l1 import L1 as L1
from epsball.balls.l0 import L0 as L0
