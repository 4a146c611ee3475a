"""Classifiers on the features of a network that is not trained any further."""
