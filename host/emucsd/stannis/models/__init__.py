"""Networks to train, written from their papers, under the names that torchvision gives them.

``emucsd train emucsd.stannis.models:mobilenet_v2`` trains one; so does ``torchvision.models:mobilenet_v2`` where
torchvision is installed, or any other function that returns a ``torch.nn.Module``.
"""

from emucsd.stannis.models.densenet import densenet121
from emucsd.stannis.models.description import Description, describe
from emucsd.stannis.models.inception import inception_v3
from emucsd.stannis.models.mobilenet import mobilenet_v1, mobilenet_v2
from emucsd.stannis.models.nasnet import nasnet_a_mobile
from emucsd.stannis.models.resnet import resnet18, resnet34, resnet50
from emucsd.stannis.models.small import small
from emucsd.stannis.models.squeezenet import squeezenet1_0
from emucsd.stannis.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn

__all__ = [
    "Description",
    "densenet121",
    "describe",
    "inception_v3",
    "mobilenet_v1",
    "mobilenet_v2",
    "nasnet_a_mobile",
    "resnet18",
    "resnet34",
    "resnet50",
    "small",
    "squeezenet1_0",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
]
