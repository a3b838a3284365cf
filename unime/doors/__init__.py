"""One door a stage, named as the stage is: what it reads and writes, and the only code here that touches files.

A door imports its rooms inside `run`: opening it costs nothing, and thread counts are set before numerical libraries are loaded.
"""
