"""Grade a program by its tests without showing it the values that they expect.

A program that saw them could print them instead of computing them. So split.py (with
splitter.py, unroll.py and syntax.py) divides a test into requests to the program's process and
checks that run in ours. grade.py sends the requests to a sandbox, where driver.py runs the program
once per test. values.py rebuilds the values that the program returned, and expression.py computes
the checks, with the functions of bounded_functions.py.
"""
