"""Which networks of torchvision and timm `from_module` can read, for images of 224 x 224 and with fresh weights.

    python benchmarks/reading.py
    python benchmarks/reading.py --models resnet18 regnet_y_400mf --timm repvgg_a0

Needs torchvision and timm, unlike all other benchmarks; but none of torchvision's compiled operations, which do not
load with every build of torch. `from_module` itself compares the result with the module. Writes to
results/reading.json, for every network, the numbers of nodes and parameters, or the error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from machine import describe

from morphnas.graph import ModuleError, from_module

RESULTS = Path(__file__).parent / "results" / "reading.json"
MODELS = (
    "alexnet", "vgg11_bn", "vgg16", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "regnet_x_400mf",
    "regnet_y_400mf", "densenet121", "squeezenet1_0", "googlenet", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x1_0", "inception_v3", "convnext_tiny",
    "vit_b_16", "swin_t",
)  # fmt: skip
TIMM_MODELS = (
    "convnext_atto", "convnextv2_atto", "cspresnet50", "densenet121", "dla34", "edgenext_xx_small",
    "efficientnet_lite0", "efficientnetv2_rw_t", "fastvit_t8", "ghostnet_100", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "lcnet_050", "mixnet_s", "mobilenetv3_large_100", "mobilenetv4_conv_small", "mobileone_s0",
    "nf_resnet26", "regnety_002", "repvgg_a0", "resnest14d", "resnet26d", "resnext26ts", "rexnet_100", "seresnet18",
    "skresnet18", "tf_efficientnet_lite0", "tinynet_e", "vit_tiny_patch16_224", "xception41",
)  # fmt: skip
COMPILED = (
    "nms", "qnms", "qroi_align", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip
"""Operations that must be defined for torchvision to be imported."""


def models() -> Any:
    """The module torchvision.models."""
    try:
        import torchvision
    except (ImportError, RuntimeError):  # its compiled part was built for another torch
        library = torch.library.Library("torchvision", "DEF")
        for name in COMPILED:
            library.define(f"{name}(Tensor x) -> Tensor")
        import torchvision
    return torchvision.models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, help="of torchvision")
    parser.add_argument("--timm", nargs="*", default=TIMM_MODELS)
    args = parser.parse_args()
    available = models()
    import timm  # needs torchvision, which may have been mended now

    results: dict[str, dict[str, Any]] = {"torchvision": {}, "timm": {}}
    for name in args.models:
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        results["torchvision"][name] = read(getattr(available, name)(weights=None, **more))
        print(name, results["torchvision"][name], flush=True)
    for name in args.timm:
        results["timm"][name] = read(timm.create_model(name, pretrained=False))
        print(name, results["timm"][name], flush=True)
    about = describe() | {library: importlib.metadata.version(library) for library in results}
    RESULTS.write_text(json.dumps(about | {"networks": results}, indent=1) + "\n", encoding="utf-8")


def read(module: Any) -> dict[str, Any]:
    """Number of nodes and parameters, or the error."""
    try:
        graph = from_module(module.eval(), (3, 224, 224)).graph
        return {"nodes": len(graph.nodes), "parameters": graph.parameters}
    except ModuleError as error:
        return {"error": str(error)[:200]}


if __name__ == "__main__":
    main()
