"""Grade a program by its tests without showing it the values that they expect.

A program that saw them could return them instead of computing them. split.py decides whether a test
can run in a process of its own, apart from the program. grade.py starts the sandbox and reads the
report of driver.py, which runs the program once per test. remote_calls.py lets a test call the
program in the other process. inside.py has what the files in the sandbox share.
"""
