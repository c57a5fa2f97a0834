"""The door between settings and networks: the stages of a run.

Nothing below this package knows a config. `create.create_stage` builds what
trains; `trained.open_stage` opens what was trained from its checkpoint.
"""
