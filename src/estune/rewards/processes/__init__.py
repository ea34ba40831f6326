"""Where reward functions are called, under limits of time and memory.

pool.py calls each function either in a reward process (reward_process.py is the trainer's end of
it, reward_process_child.py the process itself) or in a thread of the trainer (in_process.py).
portable.py says which functions can be sent to a process. limited.py calls graders that may never
return. reaper.py and descendants.py end everything that a process started.
"""
