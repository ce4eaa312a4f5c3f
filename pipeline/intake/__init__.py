"""Looking at data before it is used.

`new-dataset`: `layouts` groups file names into series and pairs them, `encodings` looks at a few
pixels, `tables` scores the known tables of label values, `discover` chooses, and `first_spec` and
`preview` write the spec and its pictures. `check`: `facts` and `faults` measure each frame,
`duplicates` finds the same picture twice, `examine` makes `findings` of one data set, `compare` of
several. `headers` is what a run looks at before it starts.
"""
