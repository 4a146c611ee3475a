"""Records what timm says about the photographs of ../shared/tfds/imagenet_sample, in imagenet_sample.npz.

The network is timm's tf_efficientnet_lite0 with the trained weights of ../shared/weights, and the preprocessing is
timm's. An environment as for parity.py, with tensorflow-datasets:

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_imagenet_sample

Arrays: "top1" [250]; "logits" [250, 10] of every hundredth class; "pixels" [250], the CRC-32 of the 224x224 pixels
before normalization.
"""

import io
import zlib
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[2].parent / "shared"
EVERY = 100  # the logits of one class in so many are recorded


def main(shared: Path) -> None:
    """Writes golden/imagenet_sample.npz."""
    import tensorflow_datasets as tfds
    import timm
    import torch
    import torchvision_cpu  # noqa: F401  # pyright: ignore[reportMissingImports]  lets timm be imported
    from PIL import Image
    from safetensors.torch import load_file

    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(load_file(shared / "weights/tf_efficientnet_lite0.safetensors"), strict=True)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net))
    resize, crop = transform.transforms[:2]
    builder = tfds.builder("imagenet_sample", data_dir=str(shared / "tfds"))
    source = builder.as_data_source("validation", decoders={"image": tfds.decode.SkipDecoding()})
    logits, pixels, labels = [], [], []
    for example in source:
        image = Image.open(io.BytesIO(bytes(example["image"]))).convert("RGB")
        pixels.append(zlib.crc32(np.asarray(crop(resize(image))).tobytes()))
        labels.append(example["label"])
        with torch.no_grad():
            logits.append(net(transform(image)[None]).numpy()[0])
    logits = np.stack(logits)
    top1 = logits.argmax(1)
    print(
        f"timm {timm.__version__}, torch {torch.__version__}: {len(top1)} images, {np.mean(top1 == labels):.1%} right"
    )
    np.savez_compressed(
        Path(__file__).with_name("imagenet_sample.npz"),
        top1=top1.astype(np.int16),
        logits=logits[:, ::EVERY],
        pixels=np.asarray(pixels, np.uint32),
    )


if __name__ == "__main__":
    main(SHARED)
