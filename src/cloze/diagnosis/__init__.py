"""The instrument: where a model's gradient variance comes from on a text, and what would lower it.

Nothing is imported here: `online` is used by a run, and `run` opens what runs have left.
"""
