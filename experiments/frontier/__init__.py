"""The frontier of a trained network: smaller and faster networks, and what each costs in accuracy.

dense.py        the run to make smaller, and the recipe of further training
methods.py      METHODS, one row per way to make it smaller, and the candidates that they give
starts.py       networks without some filters or blocks, with the run's weights, to train on from
estimates.py    cost of each candidate before it is trained
order.py        the most promising candidate; the Pareto front
search.py       trains candidates within a budget, and goes on where it was stopped
points.py       exports a trained candidate, and measures it as it will be run
output.py       table, CSV, picture
"""
