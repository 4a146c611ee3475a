bits = centroids = cut = sensitivity = stored = None
