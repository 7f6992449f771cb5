"""One module per column; each runs in a process of its own and is told what to do by the runner.

These modules also run in the interpreter of the published wool, so they use nothing but the
standard library and the package that they drive.
"""
