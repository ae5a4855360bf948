"""Networks to train, written from their papers, under the names that torchvision gives them.

``emucsd train emucsd.stannis.models:mobilenet_v2`` trains one; so does ``torchvision.models:mobilenet_v2`` where
torchvision is installed, or any other function that returns a ``torch.nn.Module``.
"""

from emucsd.stannis.models.description import Description, describe
from emucsd.stannis.models.mobilenet import mobilenet_v1, mobilenet_v2

__all__ = ["Description", "describe", "mobilenet_v1", "mobilenet_v2"]
