"""The local before/after page of a run (`u2s report`), and its review with decisions (`u2s review`)."""
