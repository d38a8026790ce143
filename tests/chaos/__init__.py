"""Faults at random moments: a run that meets them must end with the numbers of one that does not."""
