"""Where records come from: one way to read every kind of source that needs no institution.

A connector is a function that yields *batches*: columns of equal length by name. Cells are text;
null is empty text, numbers and dates are their text, lists and objects their JSON. Cells of an
image column are uint8 arrays (H, W, 3). Connectors hold one batch at a time, refuse what is
malformed with the place at fault, and skip nothing.

Sites read these kinds, too, and further ones (:mod:`lorica.client.data`).
"""
