"""One self-contained page a run: what was learnt, what it cost, and how to repeat it.

Imports nothing: matplotlib is slow to import, and a run needs it at its end only.
"""
