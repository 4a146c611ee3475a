"""Trained networks as files for other programs: python -m train.export, python -m train.predict.

network.py       the network that a run has trained, as it computes
graph.py         that network as one function of images, to write as a program (ONNX, StableHLO)
formats.py       writes each format, and opens it again
onnx_graph.py    rewrites the graphs of jax2onnx for fast kernels
onnx_int8.py     inserts the scales and roundings of int8 layers
trained_int8.py  the scales of networks that were trained with int8 layers
quantize.py      chooses the layers that compute in int8, by accuracy
verify.py        compares a written network with the run's network, on real images
loaded.py        a run, or an exported network of any format, as a function of images
write.py         writes, verifies and describes an export
cards.py         card.json, the description of an exported network
onnx_side.py     runs jax2onnx in a process of its own
torch_side.py    runs in a Python that has PyTorch
"""
