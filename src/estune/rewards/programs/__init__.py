"""Grade a program by its tests without showing it what they expect.

grade.py asks the sandbox, where driver.py runs the program once per test, and judges the reports.
split.py divides a test into requests to the program and checks made here (expression.py, with
bounded_functions.py) of the values that come back (values.py).
"""
