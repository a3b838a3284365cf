"""UniME-V2, open: retrieve, judge, mine, train, evaluate.  Importing this package loads no torch."""

__version__ = "0.1.0"
