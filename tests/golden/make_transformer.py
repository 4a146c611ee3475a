"""Records the outputs of PyTorch's transformer layers with drawn weights in transformer.npz; see parity.py."""

import pathlib

import numpy as np

import models
from models.weights.layouts import flatten
from tests.golden import drawn

TINY = {"vocab_size": 30, "width": 16, "heads": 2, "layers": 2, "ff_width": 24, "max_length": 12}
CASES = {"paper": {}, "prenorm": {"prenorm": True, "act": "gelu"}}


def tokens(name: str, shape: tuple[int, int], padding: tuple[int, ...]) -> np.ndarray:
    """Returns int32 tokens from 1 to 29, seeded by `name`; each row ends with its number of padding zeros."""
    indices = 1 + np.abs(drawn.images(name, shape) * 1000).astype(np.int32) % 29
    for row, count in zip(indices, padding, strict=True):
        row[len(row) - count :] = 0
    return indices


SOURCE, TARGET = tokens("source", (3, 9), (0, 4, 2)), tokens("target", (3, 7), (3, 0, 1))


def state(params, prefix, names):
    """Returns the arrays of one of our stacks under PyTorch's names."""
    arrays = {}
    for path, array in sorted(params.items(), reverse=True):  # cross/q before cross/kv: PyTorch has one array for both
        if not path.startswith(f"{prefix}/block"):
            continue
        _, block, *layer, leaf = path.split("/")
        name, leaf = names["/".join(layer)], {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        name = f"layers.{block.removeprefix('block')}.{name}"
        name += f"_{leaf}" if name.endswith("in_proj") else f".{leaf}"
        arrays.setdefault(name, []).append(array.T)
    return {name: np.concatenate(parts) for name, parts in arrays.items()}


if __name__ == "__main__":
    import torch

    torch.backends.mha.set_fastpath_enabled(False)
    recorded = {}
    self_attention = {
        "attention/qkv": "self_attn.in_proj",
        "attention/out": "self_attn.out_proj",
        "attention_norm": "norm1",
        "expand": "linear1",
        "reduce": "linear2",
    }
    cross = {
        "cross/q": "multihead_attn.in_proj",
        "cross/kv": "multihead_attn.in_proj",
        "cross/out": "multihead_attn.out_proj",
        "cross_norm": "norm2",
    }
    for label, fields in CASES.items():
        model = models.create("transformer_base", **TINY, **fields)
        params = flatten(drawn.variables(model))
        common = {
            "d_model": 16, "nhead": 2, "dim_feedforward": 24, "dropout": 0.0, "batch_first": True,
            "norm_first": model.prenorm, "activation": model.act,
        }  # fmt: skip
        nets, norms = {}, {}
        for kind, names in (
            ("encoder", {**self_attention, "feed_forward_norm": "norm2"}),
            ("decoder", {**self_attention, **cross, "feed_forward_norm": "norm3"}),
        ):
            arrays = state(params, kind, names)
            norm = None
            if model.prenorm:
                norm = torch.nn.LayerNorm(16)
                arrays |= {
                    f"norm.{theirs}": params[f"{kind}/final_norm/{ours}"]
                    for ours, theirs in (("scale", "weight"), ("bias", "bias"))
                }
            if kind == "encoder":
                net = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**common), 2, norm, False)
            else:
                net = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**common), 2, norm)
            net.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
            nets[kind] = net.eval()
        embedding = torch.from_numpy(params["embedding"])

        def embed(indices):
            place, i = torch.arange(indices.shape[1]).float()[:, None], torch.arange(8)
            angle = place / 10000 ** (2 * i / 16)
            positions = torch.zeros(indices.shape[1], 16)
            positions[:, 0::2], positions[:, 1::2] = torch.sin(angle), torch.cos(angle)
            return embedding[indices] * 4 + positions  # sqrt(16)

        source, target = torch.from_numpy(SOURCE).long(), torch.from_numpy(TARGET).long()
        causal = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        with torch.no_grad():
            encoded = nets["encoder"](embed(source), src_key_padding_mask=source == 0)
            decoded = nets["decoder"](embed(target), encoded, causal, memory_key_padding_mask=source == 0)
            recorded |= {f"{label}|encoded": encoded.numpy(), f"{label}|logits": (decoded @ embedding.T).numpy()}
        print(label, {name: float(np.abs(array).max()) for name, array in recorded.items() if name.startswith(label)})
    np.savez_compressed(pathlib.Path(__file__).with_name("transformer.npz"), **recorded)
