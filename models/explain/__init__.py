"""What a network sees, and what it bases its decision on: pure functions f(model, variables, images, target, …).

  from models.explain import cam
  found = cam.grad_cam(model, variables, images, target=3, endpoint="stage4")   # found.values [N, h, w], found.logits

Each is compiled, works on batches, and on any network through its endpoints (layers/endpoint.py), which it reads and
differentiates from outside: the module is as it was. See method.py for what they share, cam.py, gradient.py,
rollout.py, occlusion.py, receptive.py and patches.py for the methods, faithful.py for whether to believe them.
"""
