"""Records in hub.npz timm's logits of one JPEG, with timm's own preprocessing. Needs PyTorch; see parity.py.

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_hub

The weights are drawn by name (drawn.torch_weight), so only config.json, as timm writes it for the hub, and the outputs
are stored. Networks without a head give features.
"""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np

from tests.golden import drawn

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401

TAGS = (
    "resnet18.a1_in1k",
    "resnet26.bt_in1k",
    "resnet50_gn.a1h_in1k",
    "resnext50_32x4d.a1_in1k",
    "wide_resnet50_2.tv2_in1k",
    "resnetv2_50x1_bit.goog_distilled_in1k",
    "densenet121.ra_in1k",
    "mobilenetv1_100.ra4_e3600_r224_in1k",
    "mobilenetv2_050.lamb_in1k",
    "tf_efficientnet_lite0.in1k",
    "vgg11.tv_in1k",
    "convnext_atto.d2_in1k",
    "convnext_tiny.fb_in22k_ft_in1k_384",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k",
    "vit_small_patch16_224.dino",
    "vit_base_patch16_224.mae",
)


def picture() -> bytes:
    """Returns a JPEG of smooth random colors, 330 x 280."""
    from PIL import Image

    small = np.random.default_rng(7).integers(0, 256, (7, 8, 3), np.uint8)
    image = Image.fromarray(small).resize((330, 280), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    import timm
    import torch
    from PIL import Image
    from timm.models._hub import save_config_for_hf

    jpeg, configs, arrays = picture(), {}, {}
    for tag in TAGS:
        model = timm.create_model(tag).eval()
        with torch.no_grad():
            for name, array in model.state_dict().items():
                array.copy_(torch.from_numpy(np.asarray(drawn.torch_weight(name, tuple(array.shape)))))
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        image = transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        with torch.no_grad():
            arrays[tag] = model(image[None]).numpy()[0]
        with tempfile.TemporaryDirectory() as folder:
            save_config_for_hf(model, f"{folder}/config.json")
            configs[tag] = json.loads(pathlib.Path(folder, "config.json").read_text())
        print(tag, arrays[tag].shape, np.abs(arrays[tag]).max())
    file = pathlib.Path(__file__).with_name("hub.npz")
    np.savez_compressed(file, jpeg=np.frombuffer(jpeg, np.uint8), configs=json.dumps(configs), **arrays)
