"""Makes `models/` importable as `kansformer.models` in the checkout, as it is in a wheel.

Both names refer to the same modules, since two copies would register the operators twice.
"""

import pkgutil
import sys
from importlib import import_module

import models

for module in pkgutil.walk_packages(models.__path__, "models."):
    sys.modules[f"kansformer.{module.name}"] = import_module(module.name)
sys.modules[__name__] = models
