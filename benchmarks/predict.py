"""A frame of a test set predicted and counted: ours against the usual lines, interleaved.

Ours is what `evaluate` does with each frame: it is shown at the working width, logits are resized
to its own size class by class, and the confusion matrix is counted where the prediction lies. The
plain form has the same network, contiguous tensors, all classes resized at once, and counts with
NumPy. Both in 32 bits, batch 1. Prints the median of the paired ratios plain / ours (above 1: ours
is faster), on a GPU also peak memory and the share of its peak arithmetic (`--peak`).

    OMP_NUM_THREADS=1 python benchmarks/predict.py --recipe small --size 512x256 --width 256
    python benchmarks/predict.py                                                     # on a GPU
"""

import argparse
import copy

import numpy as np
import torch
from steps import DEVICE, compare, device_name
from torch.nn import functional as F

from pipeline.config.load import recipes
from pipeline.config.segmentation import SegmentationConfig
from pipeline.data.images import resize_rgb
from pipeline.data.labels import IGNORE, load_label_space
from pipeline.yaml_files import read_yaml
from segmentation.evaluate import count_on_device
from segmentation.models import build_model
from segmentation.predict import DEFAULT, scores, upsampled_argmax

SPACE = load_label_space("cityscapes19")
CLASSES = len(SPACE.classes)


def main(options: argparse.Namespace) -> None:
    """Measure, and say on what."""
    width, height = map(int, options.size.split("x"))
    fields = read_yaml(recipes()[options.recipe])
    config = SegmentationConfig.model_validate(fields | {"encoder_weights": "none"})
    usual = build_model(config, CLASSES, pretrained=False).eval().to(DEVICE)
    network = copy.deepcopy(usual).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (height, width, 3), np.uint8)
    truth = rng.integers(0, CLASSES, (height, width), np.uint8)
    small = (options.width, height * options.width // width)
    print(
        f"torch {torch.__version__}, {device_name()}; {config.architecture}, {config.encoder}, "
        f"{small[0]}x{small[1]} shown, {width}x{height} predicted"
    )

    @torch.inference_mode()
    def plain() -> None:
        x = torch.tensor(resize_rgb(frame, small), device=DEVICE).permute(2, 0, 1)[None] / 255
        logits = usual.network(((x - usual.mean) / usual.std).contiguous())
        large = F.interpolate(logits, size=(height, width), mode="bilinear")
        classes = large.argmax(dim=1)[0].cpu().numpy()
        scored = truth != IGNORE
        keys = truth[scored].astype(int) * CLASSES + classes[scored]
        np.bincount(keys, minlength=CLASSES**2)

    @torch.inference_mode()
    def ours() -> None:
        found = scores(network, resize_rgb(frame, small), DEFAULT)
        count_on_device(truth, upsampled_argmax(found, (height, width)), CLASSES).cpu()

    compare(plain, ours, name="plain loop", pairs=options.pairs, peak=options.peak)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=list(recipes()), default="deeplabv3plus_r101")
    parser.add_argument("--size", default="2048x1024", help="of the frame, WIDTHxHEIGHT")
    parser.add_argument("--width", type=int, default=1024, help="at which it is shown")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s of the GPU in bf16")
    main(parser.parse_args())
