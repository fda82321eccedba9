"""Greedy solvers that know no model and no dataset.

`matching_pursuit` chooses atoms (`atoms`, from a `shortlist` where they are many) and fits their
weights (`ridge_fit`), for GRAD-MATCH, and leaves a `greedy_path` of all smaller budgets;
`facility_location` chooses medoids, for CRAIG; `k_means` groups numbers, for SeTa. On an
accelerator `batched_pursuit` and `batched_medoids` do so for all classes at once, as
`device_memory` allows.
"""
