"""A small HTTP server in front of a network: `python -m train.serve` (docs/serving.md).

uploads.py reads bodies within limits, batcher.py computes concurrent requests together, evidence.py draws Grad-CAM,
app.py has the addresses, page.html is the page, and server.py runs it all until a signal comes.
"""
