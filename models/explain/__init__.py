"""Explanations of a network's decisions, as pure functions f(model, variables, images, target, ...).

  from models.explain import cam
  explanation = cam.grad_cam(model, variables, images, target=3, endpoint="stage4")
  explanation.values, explanation.logits                                  # [N, h, w] and [N, classes]

Methods are compiled and work on batches. They work for any network through its endpoints (layers/endpoint.py), which
they read and differentiate from outside, without a change to the module. cam.py, gradient.py, rollout.py, occlusion.py,
receptive.py and patches.py have the methods, method.py what they share, and faithful.py tests of their faithfulness.
"""
