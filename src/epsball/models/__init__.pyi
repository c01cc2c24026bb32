from epsball.models.load import load_model as load_model
from epsball.models.registry import build as build
from epsball.models.weights import save_weights as save_weights
