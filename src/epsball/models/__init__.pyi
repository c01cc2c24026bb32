from epsball.models.ensemble import Ensemble as Ensemble
from epsball.models.opening import load as load
from epsball.models.registry import build as build
from epsball.models.weights import save_weights as save_weights
