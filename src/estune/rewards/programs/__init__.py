"""Grade a program by its tests without showing it what they expect.

grade.py starts the sandbox, where driver.py runs the program once per test, and reads the report.
split.py decides which tests run in a process of their own, apart from the program;
conversation.py is how the two processes talk.
"""
