"""Trained networks as files for others: python -m train.export, python -m train.predict.

network.py       what a run has trained, as it computes
graph.py         the same as one function of images, to be written as a program (ONNX, StableHLO)
formats.py       how each format is written, and opened again
verify.py        a written network against the one that it was made of, on real images
loaded.py        a run, or an exported network of any format, as a function of images
onnx_side.py     runs in a process of its own, by jax2onnx
torch_side.py    runs in a Python that has PyTorch
"""
