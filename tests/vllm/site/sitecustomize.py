"""Let the Python part of a CUDA build of torchvision be imported beside a CPU build of torch."""

import sys


class _Schemas:
    """Declares torchvision's compiled operators, which it describes at import, before it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.torchvision_schemas = self  # a library lives as long as its object
        return


sys.meta_path.insert(0, _Schemas())
