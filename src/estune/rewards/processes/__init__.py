"""Where reward functions are called, under limits of time and memory.

pool.py decides for each function between a process of its own (scorer.py, scorer_child.py) and a
thread of the trainer (in_process.py); portable.py says which functions can be sent to a process.
limited.py calls a grader that may never end. keeper.py and descendants.py end what a process left.
"""
