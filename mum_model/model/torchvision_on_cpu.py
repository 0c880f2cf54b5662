"""Lets timm be imported where torch is a CPU build and torchvision was built for CUDA.

torchvision registers shape functions for two operators that its CUDA library would have defined; without them its
import fails ("operator torchvision::nms does not exist"), and timm's with it. Declaring the two signatures is enough:
nothing here ever calls them. On a machine with a matching pair of builds this does nothing.
"""

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the declarations live as long as this object

if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms" + _SIGNATURE)
    _library.define("qnms" + _SIGNATURE)
