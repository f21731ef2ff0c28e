"""`vicc doctor`: whether a cluster can run an experiment, checked from each of its nodes.

`facts` is gathered on a node, `checks` turns the facts of all nodes into findings, `demand` says what the run will need and
whether it fits; all three know no Ray. `cluster` carries them to the nodes, `verb` prints what came of it.
"""
