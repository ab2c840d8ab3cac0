from .cache import Features as Features
from .cache import open_features as open_features
