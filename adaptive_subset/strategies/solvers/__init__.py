"""What strategies have in common: greedy solvers that know no model and no dataset."""
