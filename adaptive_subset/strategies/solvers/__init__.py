"""Greedy solvers that know no model and no dataset.

`matching_pursuit` chooses atoms (`atoms`, from a `shortlist` where they are many) and fits their
weights (`ridge_fit`), for GRAD-MATCH, and leaves a `greedy_path` of all smaller budgets;
`batched_pursuit` does so for all classes at once on an accelerator, as `device_memory` allows;
`facility_location` chooses medoids, for CRAIG; `k_means` groups numbers, for SeTa.
"""
