"""Damaged input for the command line: made by seeded mutation, run in this process, and judged.

    PYTHONPATH=tests python -m fuzz --minutes 30 --out failures      # make fuzz MINUTES=30

mutators.py damages text, structure and files; case.py is one damaged input and how it is kept; play.py runs it under
limits; oracles.py knows what must not be believed; one module per category says what is damaged, what it is run
through, and what is right. corpus/ holds inputs that once did harm; they are tried first on every run.
"""
