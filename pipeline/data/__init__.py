"""Data sets as values: specs, listings of frames, labels and their spaces, reading and caching.

A `DatasetSpec` says where frames are and how labels are encoded; a `LabelSpace` groups names into
classes. Everything that opens a frame or a label file of a data set goes through this room.
"""
