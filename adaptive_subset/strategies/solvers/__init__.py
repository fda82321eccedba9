"""Greedy solvers that know no model and no dataset.

`matching_pursuit` chooses atoms (`atoms`) and fits their weights (`ridge_fit`), for GRAD-MATCH;
`facility_location` chooses medoids, for CRAIG; `k_means` groups numbers, for SeTa.
"""
