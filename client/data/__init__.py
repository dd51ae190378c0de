"""How a site reads its records: one way for every kind of source, for training and for checks.

Batches go through the same steps whatever the source: the roles of columns are checked, labels
are mapped, duplicates are dealt with, and what is large is held on disk. A failure at any step
leaves nothing behind: no record is used and nothing is charged.
"""
