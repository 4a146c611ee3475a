"""Names of the methods as papers write them, for pictures and tables; a separate module, because JAX is slow to import.

`models.explain.catalogue` has the methods.
"""

TITLES = {
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "counterfactual": "Counterfactual",
    "attention_rollout": "Attention Rollout",
    "saliency": "Saliency",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "Integrated Gradients",
    "guided_backprop": "Guided Backprop",
    "deconvnet": "Deconvnet",
    "guided_grad_cam": "Guided Grad-CAM",
    "occlusion": "Occlusion",
    "receptive_field": "Receptive Field",
    "top_patches": "Top Patches",
}
