"""A run on a cluster through Ray's jobs server: what is sent, under which name, and how to come back to it.

`package` makes the small folder that goes there, `request` the job's name and words, `client` (the only part that imports
Ray) the connection, `following` shows a job's log until its end. `verbs` is what the command line calls.
"""
