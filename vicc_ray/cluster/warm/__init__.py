"""Worker processes that start in a tenth of a second: forked from a process that has imported Ray, torch and this package.

`launcher` runs in the place of Ray's start of a worker and passes it to the node's fork server (`server`); `start` decides who
runs one. Ray starts each worker as a fresh Python, which imports for 3 to 5 seconds of CPU; a run starts ten of them.
"""
