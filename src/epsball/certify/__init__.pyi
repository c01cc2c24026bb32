from epsball.certify.certify import Certification as Certification
from epsball.certify.certify import certify as certify
from epsball.certify.smoothed import SmoothedClassifier as SmoothedClassifier
from epsball.certify.smoothing import SmoothCertificates as SmoothCertificates
from epsball.certify.smoothing import Smoothing as Smoothing
from epsball.certify.smoothing import smooth_certify as smooth_certify
